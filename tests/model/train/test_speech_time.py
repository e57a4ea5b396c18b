"""The time of a step of method asr: products and attention take their FLOPs, as ``flops`` counts them."""

from dataclasses import replace

import pytest

from afn_model.config import SpeechConfig
from afn_model.train.account import BatchShape
from afn_model.train.curriculum import Stage
from afn_model.train.flops import ctc_flops, speech_forward_flops
from afn_model.train.rates import ASSUMED
from afn_model.train.run_layout import RunLayout
from afn_model.train.speech_account import SpeechAccount
from afn_model.train.speech_time import SpeechStepTime, time_of
from afn_model.train.step_time import band

FULL = SpeechConfig()
MICRO = BatchShape((814, 814), (1500, 1500), 64, texts=(64, 64))
NONE = RunLayout(dtype="bfloat16", recompute="none")
RATE = 1e15
EQUAL = replace(ASSUMED, hbm=1e30, launch=1e-30, **dict.fromkeys(("matmul", "attention", "attention_backward"), RATE))


def time_with(trains, layout=NONE, config=FULL, rates=EQUAL, **asr) -> SpeechStepTime:
    stage = Stage("some", trains, {"x": 1.0}, "asr", context=4096, batch_tokens=4096, asr=asr)
    return time_of(SpeechAccount(config, stage, layout, 1, MICRO), rates, 1, 60.0)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_forward_of_the_decoder_takes_its_flops(pooled):
    config = replace(FULL, pooled=pooled)
    time = time_with(("decoder",), config=config)
    heard = [750, 750] if pooled else [1500, 1500]
    flops = speech_forward_flops(config, [64, 64], heard, 64, [1500, 1500])
    decoder = time.forward()[0] - float(time.encode().max())
    assert decoder == pytest.approx((flops["linear"] + flops["attention"]) / RATE, rel=2e-3)  # pairs with oneself
    assert time.head(1) == pytest.approx(flops["head"] / RATE)


def test_a_backward_by_what_trains():
    """Twice the forward where all trains; without the encoder no gradient of the frames, and nothing of the encoder."""
    layers, each = FULL.layers, time_with(("decoder",)).heard_seconds(1)
    both, decoder = time_with(("encoder", "decoder")), time_with(("decoder",))
    frames = float(each.max()) * layers
    encoder = 2 * float(both.encode().max())
    assert both.backward()[0] - decoder.backward()[0] == pytest.approx(frames + encoder)
    again = time_with(("decoder",), replace(NONE, recompute="selective"))
    assert again.backward()[0] > decoder.backward()[0]
    assert again.mode == "full"


@pytest.mark.parametrize("trains", [("decoder",), ("encoder", "decoder")])
def test_ctc_takes_its_flops_and_those_of_the_logits_that_are_made_again(trains):
    more = time_with(trains, ctc=0.3).backward()[0] - time_with(trains).backward()[0]
    again = 2.0 * FULL.audio.width * (FULL.vocab_size + 1) * 3000
    assert more == pytest.approx((ctc_flops(FULL, 3000, trains) + again) / RATE, rel=1e-6)


def test_a_band_is_about_the_estimate():
    time = time_with(("encoder", "decoder"), rates=ASSUMED)
    low, high = band(time)
    assert low < time.step().total < high
