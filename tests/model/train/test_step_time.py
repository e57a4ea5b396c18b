"""The time of a step: by hand for what is simple, and how it must change with what a stage does."""

from dataclasses import replace

import pytest

from afn_model.config import ModelConfig
from afn_model.train.account import Account, BatchShape
from afn_model.train.curriculum import Stage
from afn_model.train.flops import head, language_model_linear
from afn_model.train.rates import ASSUMED
from afn_model.train.run_layout import RunLayout
from afn_model.train.step_time import StepTime, band

FULL = ModelConfig()
TEXT = BatchShape((8192,), (), 400)
NONE = RunLayout(dtype="bfloat16", recompute="none")
FREE = {"hbm": 1e30, "launch": 1e-30, "attention": 1e30, "attention_backward": 1e30}


def stage(trains=("all",), **more) -> Stage:
    return Stage("some", trains, {"x": 1.0}, **{"batch_tokens": 8192 * 128, **more})


def time_of(stage, layout=NONE, gpus=1, micro=TEXT, rates=ASSUMED, number=2, audio=0.0) -> StepTime:
    return StepTime(Account(FULL, stage, layout, gpus, micro), rates, number, audio)


def test_products_alone_take_their_flops():
    """Forward, and the gradients of inputs and of weights; none of the weights where they are frozen."""
    rates = replace(ASSUMED, **FREE)
    linear, loss = 8192 * language_model_linear(FULL.text), 400 * head(FULL.text)
    whole = time_of(stage(), rates=rates).step()
    assert whole.compute == pytest.approx(2 * 3 * (linear + loss) / ASSUMED.matmul)
    assert whole.exposed == whole.sampling == whole.data == 0
    frozen = time_of(stage(("adaptor",)), rates=rates).step()
    assert frozen.compute == pytest.approx(2 * 2 * (linear + loss) / ASSUMED.matmul)
    text = FULL.text
    again = time_of(stage(), replace(NONE, recompute="selective"), rates=rates).step()
    opened = 2 * text.layers * 8192 * 4 * text.width * text.ffn / ASSUMED.matmul
    assert again.compute - whole.compute == pytest.approx(opened)


def test_products_in_fp8_take_the_rate_of_fp8_and_quantisation_its_bytes():
    """A byte for each that is read in bfloat16: inputs forward, gradients and both across tokens backward, weights."""
    fast, layout, one = replace(ASSUMED, **FREE), replace(NONE, fp8=True), {"number": 1}
    linear, loss = 8192 * language_model_linear(FULL.text), 400 * head(FULL.text)
    whole = time_of(stage(), layout, rates=fast, **one).step()
    assert whole.compute == pytest.approx(3 * (linear / ASSUMED.fp8 + loss / ASSUMED.matmul))
    slow, text = replace(ASSUMED, **FREE | {"hbm": 1.0}), FULL.text
    plain, coded = (time_of(stage(), one, rates=slow, number=1).step().compute for one in (NONE, layout))
    inputs, outputs = 3 * text.width + text.ffn, 3 * text.width + 2 * text.kv_heads * text.head_dim + 2 * text.ffn
    weights = language_model_linear(text) / 2
    bytes_ = 3 * text.layers * 8192 * (2 * inputs + 2 * outputs) + 2 * 25 * weights
    assert coded - plain == pytest.approx(bytes_, rel=1e-3)
    sharded = replace(layout, shard=8)
    sent = time_of(stage(), sharded, 8).gather(time_of(stage(), sharded, 8).units.layers[0])
    before = time_of(stage(), replace(sharded, fp8=False), 8)
    assert sent == pytest.approx(before.gather(before.units.layers[0]) / 2, rel=0.1)


def test_attention_alone():
    """4 FLOPs a pair, head and dimension forward and 10 backward, at the fastest provider's rates or a ring's own."""
    rates = replace(ASSUMED, matmul=1e30, hbm=1e30, launch=1e-30)
    pairs = 8192 * 8193 / 2 * 28 * 128 * 28
    plain = time_of(stage(), rates=rates, number=1).step().compute
    assert plain == pytest.approx(pairs * (4 / ASSUMED.attention + 10 / ASSUMED.attention_backward))
    links = {"nvlink": 1e30, "across": 1e30, "message": 0.0, "sms": 0.0}
    ring = time_of(stage(), replace(NONE, ring=2), 2, rates=replace(rates, **links), number=1).step()
    own = pairs / 2 * (4 / ASSUMED.own_attention + 10 / ASSUMED.own_attention_backward)
    assert ring.compute == pytest.approx(own, rel=1e-3)


def test_a_link_to_the_host_that_is_slow_is_waited_for():
    """States once a step, inputs of blocks and sums of gradients in every micro-batch; hidden where it is fast."""
    layout = RunLayout(dtype="bfloat16", recompute="full", offload_optimiser=True, offload_gradients=True)
    layout = replace(layout, offload_activations=True)
    fast, slow = (time_of(stage(), layout, rates=replace(ASSUMED, pcie=rate)) for rate in (1e15, 1e9))
    n, rows = fast.units.trained, 8192 * 2 * FULL.text.width
    inputs, largest = 55 * rows, fast.units.largest
    once = 16 * n + 16 * largest
    assert slow.transfers() == pytest.approx((2 * (2 * inputs + 4 * n) + once) / 1e9)
    assert fast.step().exposed == 0
    computes = fast.forward()[0] + fast.backward()[0]
    assert slow.step().exposed == pytest.approx(2 * ((2 * inputs + 4 * n) / 1e9 - computes))
    assert slow.step().other == pytest.approx(once / 1e9)
    still = time_of(
        stage(), replace(layout, offload_optimiser=False, offload_gradients=False, offload_activations=False)
    )
    assert still.transfers() == 0


def test_a_slow_host_keeps_the_gpu_waiting():
    slow, few = replace(ASSUMED, launch=1e-3), BatchShape((64,), (), 8)
    for part in ("forward", "backward"):
        waits, works = (getattr(time_of(stage(), micro=few, rates=rates), part)()[0] for rates in (slow, ASSUMED))
        assert waits > 20 * works


def test_a_base_of_few_bits_is_decoded_in_forward_and_backward():
    adapters = stage(("language_model",), lora={"rank": 16, "alpha": 32})
    coded = replace(adapters, lora={"rank": 16, "alpha": 32, "base": "nf4"})
    plain, slower = (time_of(some, number=1).step().compute for some in (adapters, coded))
    weights = language_model_linear(FULL.text) / 2
    assert slower - plain == pytest.approx(2 * 16 * weights / ASSUMED.hbm)


def test_messages_that_kernels_do_not_hide():
    """Weights and gradients of a layer hide behind 8K tokens, not behind 256; whole frozen ones send nothing."""
    some, layout = stage(), replace(NONE, shard=8)
    long, short = (time_of(some, layout, 8, BatchShape((n,), (), 8)).step() for n in (8192, 256))
    assert long.exposed < 0.05 * long.compute
    whole = time_of(some, layout, 8, BatchShape((256,), (), 8))
    sent = sum(2 * whole.gather(unit) + whole.reduce(unit) for unit in whole.units.units)
    assert short.exposed > 2 * 0.9 * (sent - whole.gather(whole.units.root)) - short.compute
    assert time_of(stage(("adaptor",)), replace(layout, frozen="whole"), 8).step().exposed < 1e-2
    assert time_of(stage(("adaptor",)), replace(layout, frozen="sharded"), 8).step().exposed > 1e-2
    copies = time_of(some, replace(layout, shard=8), 16).step().other - time_of(some, layout, 8).step().other
    assert copies == pytest.approx(4 * 8.265e9 / 8 / ASSUMED.network, rel=0.01), "all-reduced over two copies, once"


def test_audio_that_is_not_decoded_in_time():
    quick, slow = (time_of(stage(), replace(NONE, workers=n), audio=1000.0).step() for n in (8, 1))
    assert quick.data == 0
    assert slow.total == pytest.approx(2 * 1000 / ASSUMED.decoded)


def test_sampling_takes_a_step_for_every_token():
    grpo = Stage("some", ("language_model",), {"x": 1.0}, "grpo", batch_prompts=8, grpo={"prompts": 4})
    micro = BatchShape((900, *[511] * 5), (), 5 * 512, 5)
    time = time_of(grpo, micro=micro, number=8)
    step = time.step()
    assert step.sampling > 2 * 1024 * ASSUMED.token
    assert time_of(grpo, micro=micro, number=4).step().sampling == pytest.approx(step.sampling / 2)
    without = time_of(replace(grpo, grpo={"prompts": 4, "kl": 0}), micro=micro, number=8).step()
    assert without.compute < step.compute, "a reference is asked too"


@pytest.mark.parametrize("trains", [("adaptor",), ("all",)])
def test_the_band_is_around_the_estimate_and_narrower_where_it_was_measured(trains):
    time = time_of(stage(trains))
    low, high = band(time)
    assert low < time.step().total < high
    measured = time_of(stage(trains), rates=replace(ASSUMED, measured=("matmul", "attention", "hbm", "block")))
    assert high / low > band(measured)[1] / band(measured)[0]


def test_the_full_model_is_within_what_others_measure():
    """An 8B model on H100 at 8K: 5.8K tokens/s per GPU in an eager loop and 14.5K in the best FP8 record."""
    layout = RunLayout(dtype="bfloat16", recompute="selective", shard=8)
    time = time_of(stage(), layout, 8, BatchShape((1024,) * 8, (1500,) * 8, 400), number=16)
    assert 5_762 < time.tokens() / 8 / time.step().total < 14_451
