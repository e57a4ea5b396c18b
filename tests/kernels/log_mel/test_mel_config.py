"""Front ends of any size: against those of transformers and torchaudio, and every way to call them."""

from dataclasses import replace
from functools import lru_cache
from unittest import mock

import numpy as np
import pytest
import torch

import afn_kernels as ak
from afn_kernels import MelConfig
from afn_kernels.log_mel import _cpu_available, reference
from afn_kernels.log_mel.mel_config import decoded
from afn_kernels.log_mel.tables import filters, window
from tests.budget import assert_within, assert_within_budget, fresh, lost
from tests.kernels.test_log_mel import LEVELS, amplitude, noise

built = pytest.mark.skipif(bool(_cpu_available()), reason=_cpu_available() or "built")
IMPLS = [pytest.param("cpu", marks=built), "reference"]
DRAWS = 8
LENGTHS = (16_000, 9_137, 12_345)  # of a padded batch: whole hops, and not


def voice(samples: int, g: torch.Generator) -> torch.Tensor:
    """[T] float32: a vowel that glides and pauses, over a whisper."""
    t = torch.arange(samples, dtype=torch.float64) / 16_000
    pitch = 100 + 60 * torch.rand(1, generator=g, dtype=torch.float64) + 30 * torch.sin(4 * t)
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / 16_000
    tone = sum(torch.sin(k * phase) / k for k in range(1, 25))
    whisper = 1e-3 * torch.randn(samples, generator=g, dtype=torch.float64)
    return (0.1 * tone * torch.sin(9 * t).clamp(min=0) + whisper).float()


@lru_cache
def clips(draw: int) -> tuple[torch.Tensor, ...]:
    """A batch of recordings, fresh in every run."""
    del draw
    g = fresh()
    return tuple(voice(n, g) for n in LENGTHS)


def padded(pcm: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(pcm, batch_first=True)


def magnitudes(features: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """Where float32's error has a bounded size: the mel amplitude, but for what is normalised the feature itself."""
    features = features.double()
    if config.normalize or not config.log:
        return features
    energy = features * config.divisor - config.offset
    energy = torch.exp(energy) if config.log == "ln" else 10**energy
    return energy if config.power == 1 else energy.sqrt()


def by_transformers(name: str, pcm: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Features [n_mels, frames] of each clip of a padded batch."""
    transformers = pytest.importorskip("transformers")
    arrays, given = [x.numpy() for x in pcm], {"sampling_rate": 16_000}
    if name == "nemo":
        found = transformers.ParakeetFeatureExtractor()(arrays, **given).input_features
    elif name == "seamless_m4t":
        found = transformers.SeamlessM4TFeatureExtractor()(arrays, return_tensors="pt", **given).input_features
        found = found.reshape(len(pcm), -1, 80)
    elif name == "kaldi":
        extract = transformers.SeamlessM4TFeatureExtractor()
        found = [torch.from_numpy(extract._extract_fbank_features(x)) for x in arrays]
    elif name == "phi4_multimodal":
        found = transformers.Phi4MultimodalFeatureExtractor()(arrays, **given).audio_input_features
    elif name == "granite_speech":
        pytest.importorskip("torchaudio")
        found = transformers.GraniteSpeechFeatureExtractor()([x[None] for x in pcm]).input_features
        found = found.reshape(len(pcm), -1, 80)
    elif name == "gemma3n":
        extract = transformers.Gemma3nAudioFeatureExtractor()
        found = [torch.from_numpy(extract(x, pad_to_multiple_of=None)["input_features"][0]) for x in arrays]
    elif name == "voxtral_realtime":
        found = transformers.VoxtralRealtimeFeatureExtractor()(arrays, return_tensors="pt", **given).input_features
        return list(found)
    else:
        extract = (
            transformers.Qwen3ASRFeatureExtractor()
            if name == "qwen3_asr"
            else transformers.WhisperFeatureExtractor(128)
        )
        return list(torch.as_tensor(extract(arrays, padding="longest", return_tensors="pt", **given).input_features))
    return [torch.as_tensor(x).T for x in found]


# Name to its config, whether the extractor computes its transform in float64, and whether it knows lengths.
FRONT_ENDS = {
    "nemo": (MelConfig.nemo(), False, True),
    "seamless_m4t": (MelConfig.seamless_m4t(), True, True),
    "kaldi": (MelConfig.kaldi(), True, True),
    "phi4_multimodal": (MelConfig.phi4_multimodal(), True, True),
    "granite_speech": (MelConfig.granite_speech(), False, False),
    "gemma3n": (MelConfig.gemma3n(), True, True),
    "voxtral_realtime": (MelConfig.voxtral_realtime(), False, False),
    "qwen3_asr": (MelConfig.whisper(), False, False),
    "whisper": (MelConfig.whisper(), False, False),
}

SLOW = ("phi4_multimodal",)  # its module imports more than the others together
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FRONT_ENDS]


def compared(name: str, features: torch.Tensor, like: list[torch.Tensor]) -> torch.Tensor:
    """The valid frames that transformers has too, of all clips, where their errors have a bounded size."""
    config, _, knows = FRONT_ENDS[name]
    frames = [config.valid_frames(n) if knows else config.frames(max(LENGTHS)) for n in LENGTHS]
    frames = [min(n, x.shape[1]) for n, x in zip(frames, like, strict=True)]
    return torch.cat([magnitudes(x[:, :n], config) for x, n in zip(features, frames, strict=True)], 1)


def torchaudios_filters(config: MelConfig) -> torch.Tensor:
    import torchaudio

    sizes = config.n_fft // 2 + 1, config.f_min, config.top_hz, config.n_mels, config.sample_rate
    return torchaudio.functional.melscale_fbanks(*sizes, config.mel_norm, config.mel_scale)


@lru_cache
def draws(name: str) -> list[dict[str, torch.Tensor]]:
    """Of each draw of the clips: transformers' features, the reference's in float32 and the oracle."""
    config, _, knows = FRONT_ENDS[name]
    lengths, found = torch.tensor(LENGTHS) if knows else None, []
    for draw in range(DRAWS):
        like, rows = by_transformers(name, clips(draw)), padded(clips(draw))
        x = {
            "theirs": like,
            "oracle": reference.log_mel(rows.double(), config=config, lengths=lengths, out_dtype=torch.float64),
        }
        # torchaudio's filters are made in float32, and the distance between theirs and ours has a test of its own.
        made = torchaudios_filters if name == "granite_speech" else reference.filters
        with mock.patch.object(reference, "filters", made):
            x["float32"] = reference.log_mel(rows, config=config, lengths=lengths)
        found.append({key: compared(name, value, like) for key, value in x.items()} | {"like": like})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_computes_what_transformers_does(name):
    """Transformers is as near to the oracle as PyTorch in float32 is: their definitions are one."""
    first, *others = draws(name)
    elsewhere = [one for x in others for one in lost([x["float32"]], x["oracle"])]
    assert_within_budget(first["theirs"].float(), [first["float32"]], first["oracle"], elsewhere=elsewhere)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_no_further_from_float64_than_transformers(level, name):
    """Than PyTorch in float32, where transformers computes in float64."""
    from afn_kernels.log_mel import cpu

    config, wide, knows = FRONT_ENDS[name]
    lengths = torch.tensor(LENGTHS) if knows else None
    first, *others = draws(name)
    peers = ("float32",) if wide else ("theirs",)
    found = cpu.log_mel(padded(clips(0)), config=config, lengths=lengths, level=level)
    found = compared(name, found, first["like"])
    elsewhere = [one for x in others for one in lost([x[peer] for peer in peers], x["oracle"])]
    assert_within_budget(found.float(), [first[peer] for peer in peers], first["oracle"], elsewhere=elsewhere)


def test_filters_and_windows_are_torchaudios():
    torchaudio = pytest.importorskip("torchaudio")
    kaldi, melscale = torchaudio.compliance.kaldi, torchaudio.functional.melscale_fbanks
    theirs, _ = kaldi.get_mel_banks(80, 512, 16_000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    # Float32 frequencies up to 2840 mel, in filters from 24 mel on: a few roundings over the narrowest.
    assert_within(filters(MelConfig.kaldi()).T[:, :256], theirs, 8 * 2.0**-24 * 2840 / 24)
    for scale in ("htk", "slaney"):
        for norm in ("slaney", None):
            ours = MelConfig(n_fft=1024, n_mels=64, f_min=50, f_max=7000, mel_scale=scale, mel_norm=norm)
            theirs = melscale(513, 50, 7000, 64, 16_000, norm, scale)
            assert_within(filters(ours), theirs, 8 * 2.0**-24 * 7000 / 30 * theirs.max())
    windows = {"hann": torch.hann_window, "hamming": torch.hamming_window}
    for name, make in windows.items():
        for periodic in (True, False):
            ours = window(MelConfig(window=name, periodic=periodic))
            assert torch.equal(ours, make(400, periodic=periodic, dtype=torch.float64))
    povey = window(MelConfig(window="povey", periodic=False, scale=2.0))
    assert_within(povey, 2 * torch.hann_window(400, periodic=False, dtype=torch.float64) ** 0.85, 4 * 2.0**-52)


@pytest.mark.parametrize("n_fft", [2, 3, 96, 401, 1022])
@pytest.mark.parametrize("mode", ["reflect", "constant", None])
def test_spectra_are_those_of_stft(n_fft, mode):
    pcm = noise(2, 5_003).double()
    padding = "zeros" if mode == "constant" else mode
    config = MelConfig(n_fft=n_fft, hop_length=77, padding=padding, last_frame="keep")
    theirs = torch.stft(
        pcm, n_fft, 77, window=window(config), center=bool(mode), pad_mode=mode or "reflect", return_complex=True
    )
    found = reference.spectra(pcm, config, config.frames(5_003))
    theirs = theirs.abs().square()
    assert_within(found, theirs, 64 * 2.0**-52 * max(theirs.max(), 1))  # a transform's roundings, log n deep


ENDS = torch.tensor([4_001, 2_000, 777])
ODD = {
    "1024 every 256 at 22050 Hz": MelConfig(sample_rate=22_050, n_fft=1024, hop_length=256, n_mels=80),
    "odd prime 401": MelConfig(n_fft=401, hop_length=101, n_mels=40, mel_scale="htk", mel_norm=None),
    "prime factor 127": MelConfig(n_fft=254, hop_length=63, n_mels=20, padding="zeros"),
    "2 points": MelConfig(n_fft=2, hop_length=1, n_mels=1, padding=None, last_frame="keep", window="rectangular"),
    "3 points": MelConfig(n_fft=3, hop_length=5, n_mels=1, last_frame="keep", window="hamming"),
    "2·3·5·7 points": MelConfig(n_fft=210, win_length=199, hop_length=50, n_mels=23, last_frame="keep"),
    "hops longer than frames": MelConfig(n_fft=120, hop_length=500, n_mels=12, last_frame="keep"),
    "a window of 7 in 64": MelConfig(n_fft=64, win_length=7, hop_length=10, n_mels=9, padding="zeros"),
    "magnitudes without a logarithm": MelConfig(
        n_fft=512, n_mels=64, power=1, log=None, range=None, offset=0, divisor=1
    ),
    "energies to a power of two": MelConfig(n_fft=2048, hop_length=512, log=None, range=None, offset=-1, divisor=3),
    "kaldi, every 10": MelConfig.kaldi(23, n_fft=256, win_length=200, hop_length=10),
    "nemo in 512 of 512": replace(MelConfig.nemo(128), win_length=512, window="hamming"),
    "preemphasis, reflected": replace(MelConfig.whisper(80), preemphasis=0.9, n_fft=480, top=1.0, log="ln"),
}


@lru_cache
def odd(name: str) -> list[tuple[torch.Tensor, ...]]:
    """Of each draw: rows, and what the oracle and PyTorch in float32 make of them."""
    found = []
    for _ in range(8):
        pcm = torch.stack([voice(4_001, fresh()) for _ in range(3)])
        exact, same = (
            reference.log_mel(x, config=ODD[name], lengths=ENDS, out_dtype=x.dtype) for x in (pcm.double(), pcm)
        )
        found.append((pcm, magnitudes(exact, ODD[name]), magnitudes(same, ODD[name])))
    return found


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("level", LEVELS)
def test_odd_sizes(level, name):
    from afn_kernels.log_mel import cpu

    config = ODD[name]
    out = torch.full((3, config.n_mels, config.frames(4_001)), float("nan"))
    (pcm, exact, same), *others = odd(name)
    assert cpu.log_mel(pcm, config=config, lengths=ENDS, level=level, out=out) is out
    elsewhere = [one for _, oracle, other in others for one in lost([other], oracle)]
    assert_within_budget(magnitudes(out, config).float(), [same], exact, elsewhere=elsewhere, name=name)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("make", [MelConfig.nemo, MelConfig.kaldi, MelConfig.seamless_m4t])
def test_rows_of_a_batch_are_those_of_the_clips_alone(impl, make):
    config, pcm = make(), clips(0)
    batch = ak.log_mel(padded(pcm), config=config, lengths=torch.tensor(LENGTHS), impl=impl)
    assert batch.shape == (3, 80, config.frames(max(LENGTHS)))
    for row, clip in zip(batch, pcm, strict=True):
        valid = config.valid_frames(len(clip))
        alone = ak.log_mel(clip[None], config=config, impl=impl)[0]
        exact = reference.log_mel(clip[None].double(), config=config, out_dtype=torch.float64)[0]
        losses = lost([reference.log_mel(clip[None], config=config)[0]], exact)
        # Both are roundings of the same numbers: each within what the reference in float32 loses.
        assert_within_budget(row[:, :valid], [alone[:, :valid]], exact[:, :valid], elsewhere=losses)
        assert not row[:, valid:].any()
        assert not alone[:, valid:].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_what_lies_beyond_a_length_is_never_seen(impl):
    pcm, lengths = noise(3, 4_000), torch.tensor([4_000, 1_234, 0], dtype=torch.int32)
    other = pcm.clone()
    for row, length in zip(other, lengths, strict=True):
        row[length:] = float("nan")
    for config in (MelConfig.nemo(), MelConfig.phi4_multimodal(), MelConfig.whisper()):
        found = ak.log_mel(other, config=config, lengths=lengths, impl=impl)
        assert torch.equal(found, ak.log_mel(pcm, config=config, lengths=lengths, impl=impl))
        assert found.isfinite().all()
        assert not found[2].any()
    assert torch.equal(found, ak.log_mel(other, lengths=lengths, impl=impl))  # Whisper's, unless another is named


@pytest.mark.parametrize("impl", IMPLS)
def test_int16_is_float32_of_the_same_samples(impl):
    pcm = (noise(2, 5_000) * 20_000).to(torch.int16)
    for config in (MelConfig.nemo(), MelConfig.kaldi()):
        found, expected = (ak.log_mel(x, config=config, impl=impl) for x in (pcm, pcm.float() / 32768))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_frame_has_no_deviation(impl):
    for config in (MelConfig.nemo(), MelConfig.seamless_m4t()):
        pcm = noise(2, 200 if config.padding else 450)
        assert config.valid_frames(pcm.shape[1]) == 1
        found = ak.log_mel(pcm, config=config, impl=impl)
        # The mean of one number is that number, and what a rounding leaves of it is over eps.
        assert_within(found, torch.zeros_like(found), 0.0 if impl == "reference" else 2.0**-10)


@built
def test_frames_threads_and_rows_change_no_bit():
    from afn_kernels.log_mel import cpu

    pcm = noise(9, 60_000)
    for config in (MelConfig.phi4_multimodal(), ODD["1024 every 256 at 22050 Hz"], MelConfig.nemo()):
        one = cpu.log_mel(pcm, config=config, threads=1)
        for threads in (2, 8):
            assert torch.equal(cpu.log_mel(pcm, config=config, threads=threads), one)
        assert torch.equal(torch.cat([cpu.log_mel(row[None], config=config, threads=2) for row in pcm]), one)
    config = MelConfig.phi4_multimodal()
    later = cpu.log_mel(pcm[:, 160 * 5 :], config=config)
    assert torch.equal(later, cpu.log_mel(pcm, config=config)[:, :, 5:])


@built
def test_sixteen_lanes_give_the_bits_of_four():
    from afn_kernels.log_mel import cpu

    pcm = noise(2, 9_999)
    for config in (MelConfig.phi4_multimodal(), MelConfig.granite_speech(), ODD["odd prime 401"]):
        found = (cpu.log_mel(pcm, config=config, level=level) for level in ("portable", "portable16"))
        assert torch.equal(*found)


@pytest.mark.parametrize("impl", IMPLS)
def test_views_and_out(impl):
    base, config = noise(6, 9_700), MelConfig.nemo()
    for view in (base[:, 37:9_001], base[::2], base[:, 1::2], base[:1].expand(3, -1), base.T.contiguous().T):
        expected = ak.log_mel(view.contiguous(), config=config, impl=impl)
        assert torch.equal(ak.log_mel(view, config=config, impl=impl), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        out = torch.full((*expected.shape[:2], 2 * expected.shape[2]), float("nan"), dtype=dtype)[:, :, ::2]
        assert ak.log_mel(view, config=config, out_dtype=dtype, out=out, impl=impl) is out
        assert torch.equal(out, ak.log_mel(view, config=config, out_dtype=dtype, impl=impl))
    assert ak.log_mel(base[:0], config=config, impl=impl).shape == (0, 80, 61)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sample_spoils_its_frames_or_its_row(impl, bad):
    pcm = noise(3, 8_000)
    pcm[1, 4_000] = bad
    phi4, nemo, granite = (
        ak.log_mel(pcm, config=make(), impl=impl)
        for make in (MelConfig.phi4_multimodal, MelConfig.nemo, MelConfig.granite_speech)
    )
    heard = [frame for frame in range(phi4.shape[2]) if 160 * frame <= 4_000 < 160 * frame + 400]
    assert phi4[1, :, heard].isnan().all()
    assert phi4.isnan().sum() == 80 * len(heard)
    for features in (nemo[:, :, :-1], granite):
        assert features[1].isnan().all()
        assert features[[0, 2]].isfinite().all()


def test_whispers_config_is_whispers_features():
    pcm = noise(2, 16_000)
    for n_mels in (80, 128):
        config = MelConfig.whisper(n_mels)
        assert torch.equal(ak.log_mel(pcm, config=config), ak.log_mel(pcm, n_mels=n_mels))
        # What the general kernels compute of it, as they do where a row is not of whole hops, is the same but rounding.
        exact, *same = (amplitude(reference.log_mel(x, n_mels=n_mels, out_dtype=x.dtype)) for x in (pcm.double(), pcm))
        elsewhere = [
            one for x, e in other_noise(n_mels) for one in lost([amplitude(reference.log_mel(x, n_mels=n_mels))], e)
        ]
        whole = torch.tensor([16_000] * 2)
        for impl in ["reference"] if _cpu_available() else ["reference", "cpu"]:
            found = ak.log_mel(pcm, config=config, lengths=whole, impl=impl)
            assert_within_budget(amplitude(found).float(), same, exact, elsewhere=elsewhere)


def other_noise(n_mels: int):
    for _ in range(3):
        pcm = 0.1 * torch.randn(2, 16_000)
        yield pcm, amplitude(reference.log_mel(pcm.double(), n_mels=n_mels, out_dtype=torch.float64))


@pytest.mark.parametrize("make", [MelConfig.nemo, MelConfig.seamless_m4t, MelConfig.granite_speech, MelConfig.gemma3n])
def test_gradient(make):
    config = replace(make(), n_fft=32, win_length=30, hop_length=16, n_mels=5, top=None)
    pcm, lengths = noise(2, 90).double().requires_grad_(), torch.tensor([90, 61])

    def features(x):
        return ak.log_mel(x, config=config, lengths=lengths, out_dtype=torch.float64)

    assert torch.autograd.gradcheck(features, pcm, fast_mode=True)


@pytest.mark.slow
def test_compile_and_the_registered_op():
    seen, config, lengths = [], MelConfig.nemo(), torch.tensor([3_210, 2_000])

    def backend(graph, inputs):
        seen.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, n: ak.log_mel(x, config=config, lengths=n) + 1, fullgraph=True, dynamic=True, backend=backend
    )
    for samples in (3_210, 4_000, 5_123):
        pcm = noise(2, samples)
        assert torch.equal(compiled(pcm, lengths), ak.log_mel(pcm, config=config, lengths=lengths) + 1)
    assert len(seen) == 1
    assert torch.ops.afn.log_mel_any.default in seen[0] or torch.ops.afn.log_mel_any in seen[0]
    arguments = (noise(2, 3_210), lengths, config.text, torch.float32, "auto")
    torch.library.opcheck(torch.ops.afn.log_mel_any.default, arguments)


@pytest.mark.slow
def test_gradient_through_compile():
    config = MelConfig.phi4_multimodal()
    pcm = noise(1, 3_000).requires_grad_()
    compiled = torch.compile(lambda x: ak.log_mel(x, config=config), fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    (found,) = torch.autograd.grad(compiled(pcm).square().sum(), pcm)
    (expected,) = torch.autograd.grad(reference.log_mel(pcm, config=config).square().sum(), pcm)
    assert_within(found, expected, 64 * 2.0**-24 * expected.abs().max())  # the forward's roundings, squared


def test_no_kernel_on_a_gpu_takes_it():
    pcm = noise(1, 3_000)
    for impl in ("triton", "cuda"):
        rows = {row.impl: row for row in ak.explain("log_mel", pcm, config=MelConfig.nemo()).rows}
        assert rows[impl].status in ("unsupported", "unavailable")
    assert ak.log_mel(torch.empty(2, 3_000, device="meta"), config=MelConfig.nemo()).shape == (2, 80, 19)


def test_a_config_is_data():
    for config in (MelConfig.nemo(128), MelConfig.seamless_m4t(), *ODD.values()):
        assert decoded(config.text) == config
        assert hash(decoded(config.text)) == hash(config)
        for samples in (config.shortest, 4_001):
            lengths = torch.tensor([samples])
            assert int(config.frames(lengths)) == config.frames(samples) > 0
            assert int(config.valid_frames(lengths)) == config.valid_frames(samples)
        assert reference.log_mel(noise(1, config.shortest), config=config).shape[2] == 1 or config.padding


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": "blackman"}, "window='blackman'"),
        ({"mel_scale": "bark"}, "mel_scale='bark'"),
        ({"n_fft": 1}, "n_fft=1"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"n_mels": 0}, "n_mels=0"),
        ({"win_length": 401}, "win_length=401"),
        ({"f_max": 9000.0}, "f_max=9000.0"),
        ({"f_min": 8000.0}, "f_min=8000.0"),
        ({"floor": 0.0}, "floor=0.0"),
        ({"range": -1.0}, "range=-1.0"),
        ({"range": None, "top": 1.0}, "top needs a range"),
        ({"log": None}, "range=8.0"),
        ({"padding": None}, "last_frame='drop'"),
        ({"preemphasis": 0.9, "frame_preemphasis": 0.9}, "both"),
        ({"divisor": 0.0}, "divisor"),
        ({"scale": float("nan")}, "finite"),
    ],
)
def test_a_config_that_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        MelConfig(**settings)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (399, {"config": MelConfig.kaldi()}, "399 samples.*400"),
        (200, {"config": MelConfig.whisper()}, "200 samples.*201"),
        (500, {"config": MelConfig.nemo(), "n_mels": 64}, "n_mels=64"),
        (500, {"config": MelConfig.nemo(), "lengths": torch.tensor([1, 2])}, r"\[2\].*\[1\]"),
        (500, {"config": MelConfig.nemo(), "lengths": torch.tensor([1.0])}, "float32"),
        (500, {"config": MelConfig.nemo(), "lengths": torch.tensor([501])}, "501"),
        (500, {"config": MelConfig.nemo(), "lengths": torch.tensor([-1])}, "-1"),
        (500, {"lengths": torch.tensor([5]), "n_mels": 40}, "n_mels=40"),
        (500, {"config": MelConfig.nemo(), "out": torch.empty(1, 80, 3)}, r"\[1, 80, 3\]"),
        (500, {"config": MelConfig.nemo(), "out_dtype": torch.int16}, "int16"),
        (500, {"config": MelConfig.nemo(), "impl": "triton"}, "cannot run"),
        (500, {}, "config=MelConfig"),
    ],
)
def test_bad_input(samples, options, message):
    with pytest.raises(ValueError, match=message):
        ak.log_mel(torch.zeros(1, samples), **options)


@pytest.mark.parametrize("lengths", [(5001, 100), (10**9, 100), (-1, 100)], ids=str)
def test_lengths_past_the_samples_are_refused_in_a_graph_too(lengths):
    config, pcm, counts = ak.MelConfig.nemo(), torch.ones(2, 5000), torch.tensor(lengths)
    graph = torch.compile(lambda x, n: ak.log_mel(x, config=config, lengths=n), backend="eager", fullgraph=True)
    for call in (graph, lambda x, n: ak.log_mel(x, config=config, lengths=n)):
        with pytest.raises(ValueError, match="in rows of 5000 samples"):
            call(pcm, counts)


def test_numbers_of_numpy_and_whole_floats_are_integers():
    config = ak.MelConfig(hop_length=160.0, n_fft=np.int64(400))
    assert (config.hop_length, config.n_fft) == (160, 400)
    assert isinstance(config.hop_length, int)
    assert config == ak.MelConfig(hop_length=160, n_fft=400)
