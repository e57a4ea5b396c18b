"""The extractor of Parakeet and Canary against transformers' own: outputs, files, and what goes the parent's way."""

import numpy as np
import pytest
import torch

import afn_kernels as ak
from afn_kernels.log_mel import reference
from tests.budget import assert_within_budget, lost
from tests.kernels.log_mel.test_mel_config import LENGTHS, clips, padded

transformers = pytest.importorskip("transformers")
Theirs = transformers.ParakeetFeatureExtractor
RATE = {"sampling_rate": 16_000}


@pytest.fixture
def no_parent(monkeypatch):
    """Fails the test when the parent computes features."""

    def refused(*_, **__):
        raise AssertionError("the parent computed")

    monkeypatch.setattr(Theirs, "__call__", refused)


def in_float64(rows: torch.Tensor, n_mels: int) -> torch.Tensor:
    config = ak.MelConfig.nemo(n_mels)
    lengths = torch.tensor(LENGTHS)
    return reference.log_mel(rows.double(), config=config, lengths=lengths, out_dtype=torch.float64).transpose(1, 2)


@pytest.mark.parametrize(
    ("options", "longest"),
    [
        ({}, 16_000),
        ({"return_tensors": "np"}, 16_000),
        ({"return_tensors": "pt", "padding": "max_length", "max_length": 20_000}, 20_000),
        ({"pad_to_multiple_of": 12_000, "feature_size": 128}, 24_000),
    ],
)
def test_outputs_are_the_parents(options, longest, request):
    options = dict(options)
    n_mels = options.pop("feature_size", 80)
    ours, theirs = ak.ParakeetFeatureExtractor(feature_size=n_mels), Theirs(feature_size=n_mels)
    seen, losses = [], []
    for draw in range(3):
        pcm = [x.numpy() for x in clips(draw)]
        exact = in_float64(torch.nn.functional.pad(padded(clips(draw)), (0, longest - 16_000)), n_mels)
        expected = theirs(pcm, **RATE, **options)
        losses += lost([torch.as_tensor(expected["input_features"])], exact)
        seen.append((pcm, expected, exact))
    pcm, expected, exact = seen[0]
    request.getfixturevalue("no_parent")
    for given in (pcm, [torch.from_numpy(x) for x in pcm]):
        found = ours(given, **RATE, **options)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert type(found[key]) is type(value), key
            assert found[key].dtype == value.dtype, key
            assert found[key].shape == value.shape, key
        assert np.array_equal(np.asarray(found["attention_mask"]), np.asarray(expected["attention_mask"]))
        same = [torch.as_tensor(expected["input_features"])]
        assert_within_budget(torch.as_tensor(found["input_features"]), same, exact, elsewhere=losses[1:])


def test_one_clip_and_one_frame(no_parent):
    extract = ak.ParakeetFeatureExtractor()
    pcm = clips(0)[0]
    assert torch.equal(extract(pcm.numpy(), **RATE)["input_features"], extract([pcm], **RATE)["input_features"])
    assert extract(pcm[:200], **RATE)["input_features"].abs().max() < 2.0**-10  # no deviation


@pytest.mark.parametrize(
    "settings", [{"padding_side": "left"}, {"padding_value": 0.5}, {"truncation": True, "max_length": 8_000}]
)
def test_the_rest_goes_the_parents_way(settings):
    call = {key: settings.pop(key) for key in ("truncation", "max_length") if key in settings}
    pcm = [x.numpy() for x in clips(0)]
    found, expected = (e(**settings)(pcm, **RATE, **call) for e in (ak.ParakeetFeatureExtractor, Theirs))
    for key, value in expected.items():
        assert torch.equal(torch.nan_to_num(found[key] * 1.0), torch.nan_to_num(value * 1.0)), key
    with pytest.raises(ValueError, match="16000"):
        ak.ParakeetFeatureExtractor()(pcm, sampling_rate=8_000)


def test_files_are_transformers_files(tmp_path):
    ours, theirs = ak.ParakeetFeatureExtractor(feature_size=128), Theirs(feature_size=128)
    for who, extract in (("ours", ours), ("theirs", theirs)):
        extract.save_pretrained(tmp_path / who)
    files = [(tmp_path / who / "preprocessor_config.json").read_text() for who in ("ours", "theirs")]
    assert files[0] == files[1]
    assert type(transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")) is Theirs
    assert ak.ParakeetFeatureExtractor.from_pretrained(tmp_path / "theirs").feature_size == 128
