"""Model FLOPs: the published constants of AF-Next, PyTorch's own count, and what each stage adds for the backward."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import afn_kernels as ak
from afn_model import AFNext, preset
from afn_model.network.encoder import Windows
from afn_model.prompt.batch import Batch
from afn_model.train import flops
from tests.model.af_whisper import said, speech_model

FULL, TINY = preset("af-next"), preset("tiny")
EVERYTHING = ("encoder", "adaptor", "language_model", "lm_head")


def batch(lengths: list[int], samples: list[int], supervised: int) -> Batch:
    """Sequences of these lengths, one audio window each as far as they go, the last tokens of each supervised."""
    ids = torch.randint(0, 100, (sum(lengths),))
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    labels = torch.full_like(ids, -100)
    for stop in cu.tolist()[1:]:
        labels[stop - supervised : stop] = 1
    return Batch(ids, cu, torch.zeros(len(samples), 1), torch.tensor(samples), torch.ones(len(samples)).long(), labels)


def test_constants_of_af_next():
    assert flops.language_model_linear(FULL.text) == pytest.approx(13.05e9, rel=1e-3)
    assert flops.language_model_attention(FULL.text, 1000) == 200_704 * 1000**2
    assert flops.head(FULL.text) == pytest.approx(1.09e9, rel=5e-3)
    assert sum(flops.encoder_window(FULL.audio, 1500).values()) == pytest.approx(2.27e12, rel=5e-3)
    found = flops.forward_flops(FULL, [45_000], 0, [3000] * 60)
    assert found["adaptor_first"] + found["adaptor_second"] == pytest.approx(2 * 17.4e6 * 45_000, rel=5e-3)
    assert found["linear"] == pytest.approx(0.59e15, rel=0.01)
    assert found["attention"] == pytest.approx(0.41e15, rel=0.01)


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_forward_is_what_pytorch_counts():
    """On one sequence and one window; PyTorch counts all of the causal square where we count half."""
    torch.manual_seed(0)
    model, length, frames = AFNext(TINY).eval(), 64, 200
    expected = flops.forward_flops(TINY, [length], length, [2 * frames])
    with torch.no_grad(), ak.prefer("matmul"):
        mel, windows = torch.randn(1, TINY.audio.n_mels, 3000), Windows.of([2 * frames], model.device, model.dtype)
        encoder = sum(expected[f"encoder_{part}"] for part in ("first", "linear", "attention"))
        # The stem computes one more row on the left, which stands for the padding.
        assert counted(lambda: model.encoder(mel, windows)) == pytest.approx(encoder, rel=0.01)
        features = torch.randn(frames // 2, TINY.audio.width)
        assert counted(lambda: model.adaptor(features)) == expected["adaptor_first"] + expected["adaptor_second"]
        x, cu = torch.randn(length, TINY.text.width), torch.tensor([0, length], dtype=torch.int32)
        text = counted(lambda: model.language_model(x, torch.arange(length).float(), cu_seqlens=cu))
        assert text == expected["linear"] + 2 * expected["attention"]
        assert counted(lambda: model.lm_head(x)) == expected["head"]


def test_backward_is_what_pytorch_counts():
    """The adaptor alone: the first layer has no input that wants a gradient, the second one has."""
    model = AFNext(TINY)
    features = torch.randn(30, TINY.audio.width)
    forward, factors = flops.forward_flops(TINY, [], 0, [120]), flops.costs(["adaptor"])
    expected = sum(forward[part] * factors[part] for part in ("adaptor_first", "adaptor_second"))
    assert counted(lambda: model.adaptor(features).sum().backward()) == expected


@pytest.mark.parametrize(
    ("trains", "factors"),
    [
        (["adaptor"], {"encoder_linear": 1, "adaptor_first": 2, "linear": 2, "attention": 3, "head": 2}),
        (["encoder", "adaptor"], {"encoder_first": 2, "encoder_linear": 3, "adaptor_first": 3, "linear": 2, "head": 2}),
        (EVERYTHING, {"encoder_attention": 3, "adaptor_second": 3, "linear": 3, "attention": 3, "head": 3}),
        (["language_model", "lm_head"], {"encoder_linear": 1, "adaptor_second": 1, "linear": 3, "attention": 3}),
        (["lm_head"], {"linear": 1, "attention": 1, "head": 2}),
        (["adaptor", "lora"], {"encoder_linear": 1, "linear": 2, "head": 2}),
        ([], {"encoder_first": 1, "adaptor_first": 1, "linear": 1, "attention": 1, "head": 1}),
    ],
)
def test_a_frozen_part_costs_no_weight_gradient(trains, factors):
    found = flops.costs(trains)
    assert {part: found[part] for part in factors} == factors


def test_known_features_cost_nothing():
    assert all(
        flops.costs(["adaptor"], cached=True)[f"encoder_{part}"] == 0 for part in ("first", "linear", "attention")
    )
    with pytest.raises(ValueError, match="no part decoder"):
        flops.costs(["decoder"])


def test_a_batch_counts_real_lengths():
    made = batch([40, 60], [16_000, 8_000], supervised=5)
    one, other = batch([40], [16_000], supervised=5), batch([60], [8_000], supervised=5)
    both = flops.step_work(TINY, [one, other], EVERYTHING)
    assert flops.step_work(TINY, [made], EVERYTHING) == both
    assert both == {"tokens": 100, "supervised": 10, "audio_seconds": 1.5, "flops": both["flops"]}
    parts = flops.batch_flops(TINY, made, EVERYTHING)
    assert flops.batch_flops(TINY, made, EVERYTHING, all_tokens=True)["head"] == 10 * parts["head"]
    packed = flops.batch_flops(TINY, replace(made, cu_seqlens=torch.tensor([0, 100], dtype=torch.int32)), EVERYTHING)
    assert packed["attention"] == pytest.approx(parts["attention"] * 100**2 / (40**2 + 60**2))
    text = replace(made, pcm=None, samples=torch.empty(0, dtype=torch.int64))
    assert flops.batch_flops(TINY, text, EVERYTHING)["encoder"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H20", 148e12),
        ("Tesla K80", None),
    ],
)
def test_peak_by_name(name, value):
    assert flops.peak_of(name) == value


def test_a_cpu_has_no_peak():
    assert flops.peak("cpu") is None


TALKS = [said("zero", 1.3), said("two", 0.8, 2.1, seed=2)]


@pytest.mark.parametrize("pooled", [False, True])
def test_forward_of_the_speech_decoder_is_what_pytorch_counts(pooled):
    """On one text over one window; PyTorch counts all of the causal square where we count half."""
    model, _ = speech_model(pooled=pooled)
    config, tokens = model.config, torch.randint(5, 50, (40,))
    expected = flops.speech_forward_flops(config, [40], [200], 40, [])
    frames, bounds = torch.randn(200, config.audio.width), [torch.tensor([0, n], dtype=torch.int32) for n in (40, 200)]
    with torch.no_grad(), ak.prefer("matmul"), FlopCounterMode(display=False) as counter:
        hidden = model.decoder(tokens, model.decoder.packed(frames, *bounds, 40))
        model.logits(hidden)
    own = 2.0 * config.layers * config.width * 40**2
    assert counter.get_total_flops() == sum(expected.values()) + own


def test_a_ctc_head_is_what_pytorch_counts():
    model, _ = speech_model(ctc=True)
    for trains in (("encoder", "ctc_head"), ("ctc_head",)):
        frames = torch.randn(30, model.config.audio.width, requires_grad="encoder" in trains)
        with FlopCounterMode(display=False) as counter:
            model.ctc_head(frames).sum().backward()
        assert counter.get_total_flops() == flops.ctc_flops(model.config, 30, trains)


def test_a_batch_counts_text_and_frames_apart():
    model, processor = speech_model()
    batch, everything = processor(TALKS, training=True), ("encoder", "decoder")
    texts = [
        int((part != processor.sound_id).sum()) for part in batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    ]
    expected = flops.speech_forward_flops(model.config, texts, [65, 145], batch.supervised, [65, 40, 105])
    found = flops.speech_batch_flops(model.config, batch, everything)
    assert found["linear"] == 3 * expected["linear"]
    assert found["attention"] == 3 * expected["attention"]
    assert found["head"] == 3 * expected["head"]
    assert flops.speech_batch_flops(model.config, batch, ("decoder",))["encoder"] < found["encoder"] / 2
    assert flops.step_work(model.config, [batch], everything)["flops"] == sum(found.values())
