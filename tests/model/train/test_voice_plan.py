"""What a plan says of stages of a voice: counts against PyTorch's own, the document, and layouts that fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from afn_model.speech.codec import Codec
from afn_model.speech.config import CodecConfig, voice_preset
from afn_model.train.curriculum import read_curriculum
from afn_model.train.planner import check_layout, plan_stage, remedies
from afn_model.train.run_layout import for_stage, read_layout
from afn_model.train.voice_plan import codec_way_flops, voice_account, voice_sizes
from bench import talker as document

ROOT = Path(__file__).parents[3]
TALK, VOICE = read_curriculum("talk"), voice_preset("af-next-talker")


def test_the_document_is_what_the_command_writes():
    assert (ROOT / document.OUT).read_text(encoding="utf-8") == document.report()


def test_parameters_of_the_full_size():
    sizes = voice_sizes(VOICE)
    assert sizes.talker == pytest.approx(644e6, rel=0.01)
    assert sizes.quantizer == 72 * 1024 * 512


def test_flops_of_the_codec_are_those_that_pytorch_counts():
    config = CodecConfig(8_000, 16, 4, (64, 128), (8, 4), 2, 3, latent=96, levels=2, codes=8)
    codec, pcm = Codec(config).eval(), torch.randn(1, 8_000)
    with FlopCounterMode(display=False) as encoding, torch.no_grad():
        latent = codec.encode(pcm)
    with FlopCounterMode(display=False) as decoding, torch.no_grad():
        codec.decode(latent)
    for counted in (encoding, decoding):
        # It does not see the depthwise convolutions; the front reads a little more than the head writes.
        assert codec_way_flops(config) == pytest.approx(counted.get_total_flops(), rel=0.03)


def test_more_ranks_take_less_memory_and_what_does_not_fit_is_recomputed():
    stage = TALK["talker"]
    layouts = {gpus: for_stage(read_layout(f"{gpus}gpu"), stage) for gpus in (8, 128)}
    few, many = (voice_account(VOICE, stage, layouts[gpus], gpus).total() for gpus in (8, 128))
    assert few["states"] > many["states"]
    found = plan_stage(VOICE, stage, layouts[8], 8, memory=30.0)
    assert not found.fits
    assert found.band[0] < found.step.total < found.band[1]
    way = remedies(VOICE, stage, layouts[8], 8, memory=30.0)[0]
    assert way.startswith("layout: {recompute: selective")
    smaller = replace(layouts[8], recompute="selective")
    assert voice_account(VOICE, stage, smaller, 8).needs() < 30e9
    assert remedies(VOICE, TALK["codec"], for_stage(read_layout("8gpu"), TALK["codec"]), 8, memory=9.0) == []
    with pytest.raises(ValueError, match=r"^stage codec: 7 ranks cannot share the 128 prompts of a step evenly$"):
        check_layout(VOICE, TALK["codec"], replace(layouts[8], shard=0), 7)
