"""What a plan says of stages of a voice: counts against PyTorch's own, the document, and layouts that fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from afn_model.speech.config import voice_preset
from afn_model.train.curriculum import read_curriculum
from afn_model.train.planner import check_layout, plan_stage, remedies
from afn_model.train.run_layout import for_stage, read_layout
from afn_model.train.voice_plan import voice_account, voice_sizes
from bench import talker as document

ROOT = Path(__file__).parents[3]
TALK, VOICE = read_curriculum("talk"), voice_preset("af-next-talker")


def test_the_document_is_what_the_command_writes():
    assert (ROOT / document.OUT).read_text(encoding="utf-8") == document.report()


def test_parameters_of_the_full_size():
    sizes = voice_sizes(VOICE)
    assert sizes.talker == pytest.approx(644e6, rel=0.01)
    assert sizes.quantizer == 72 * 1024 * 512


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
