"""Own shapes by the names of an op's sizes, and test ids that say what is run."""

import inspect
import re
from dataclasses import replace

import pytest
import torch
from _pytest.mark.expression import Expression

from bench.ops import Absent, workloads
from bench.record import fitted
from bench.shapes import asked, factories, in_words, shape_id

WORKLOADS = workloads()


def made(shape: str, *only: str):
    return asked([shape], list(only))


def test_a_shape_is_of_every_op_that_has_its_sizes():
    found = made("rows=6,width=64")
    assert {"rms_norm", "layer_norm", "bias_gelu", "swiglu"} <= {work.op for work in found}
    assert "attention" not in {work.op for work in found}
    (work,) = made("rows=6,width=64,residual", "rms_norm")
    assert {name: tuple(x.shape) for name, x in work.make("meta", work.dtype).items()} == {
        "x": (6, 64),
        "weight": (64,),
        "residual": (6, 64),
    }
    assert work.bytes[0] == 4 * 6 * 64 * 2
    assert fitted(work, "cpu")[1] is None, "an own shape is not cut"
    assert fitted(work, "cuda")[0].bytes == work.bytes
    wide = replace(work, dtype=torch.float32)
    assert fitted(work, "cpu")[0].bytes == fitted(wide, "cuda")[0].bytes == (0, 0), "floors are of 16 bits on a GPU"
    assert str(work) == "rms_norm, 6 x 64 + residual"


def test_lists_and_dtypes():
    (work,) = made("lengths=3+5*2,heads=4,kv_heads=2,dim=16,dtype=float16")
    inputs = work.make("cpu", work.dtype)
    assert inputs["cu_seqlens_q"].tolist() == [0, 3, 8, 13]
    assert (inputs["q"].dtype, inputs["q"].shape, inputs["k"].shape) == (torch.float16, (13, 4, 16), (13, 2, 16))
    assert fitted(work, "cpu")[0].dtype == torch.float16
    assert work.name.endswith(", float16")
    (blocks,) = made("rows=256,width=256,block=128*128")
    assert blocks.options["block"] == (128, 128)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("rows=4,wide=5", "rms_norm: rows, width, residual, "),
        ("rows=many", "rows is a whole number, 0 or more, not 'many'"),
        ("rows=-3,width=640", "rows is a whole number, 0 or more, not '-3'"),
        ("rows=0,width=640", "nothing to compute: x of "),
        ("lengths=5+-1", "lengths is whole numbers, 0 or more, joined by +, not '5+-1'"),
        ("lengths=5*-1", "lengths is whole numbers, 0 or more, joined by +, not '5*-1'"),
        ("rows=8,classes=0", "--shape rows=8,classes=0: no cross_entropy has such sizes: RuntimeError: "),
        ("rows=4,residual=perhaps", "residual is yes or no"),
        ("lengths=1+x", "lengths is whole numbers, 0 or more, joined by"),
        ("rows=4,dtype=float17", "dtype is a dtype, not 'float17'"),
    ],
)
def test_what_does_not_fit_is_said(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        asked([shape])


def test_only_the_names_of_the_ops_in_question_are_listed():
    with pytest.raises(ValueError, match=r"There are rms_norm: rows, width, residual, .*; dtype: all$"):
        made("rowz=1", "rms_norm")


def test_ids_can_be_selected_and_say_what_is_run():
    ids = {}
    for device in ("cpu", "cuda"):
        for work in WORKLOADS:
            try:
                ids[device, str(work)] = name = shape_id(*fitted(work, device), device)
            except Absent:
                continue
            assert re.fullmatch(r"[\w.-]+", name)
            assert Expression.compile(name).evaluate(lambda word, name=name, **_: word in name)
    assert ids["cuda", "rms_norm, 8192 x 3584 + residual"] == "rms_norm-rows8192-width3584-residual-bfloat16-cuda"
    assert ids["cpu", "rms_norm, 45056 x 3584 + residual"] == "rms_norm-rows1024-width3584-residual-cut-float32-cpu"
    assert ids["cuda", "log_mel, 30 min, int16 to bfloat16"].endswith("-int16-cuda"), "what the call is given"
    on_a_gpu = [name for (device, _), name in ids.items() if device == "cuda"]
    assert len(set(on_a_gpu)) == len(on_a_gpu) == len(WORKLOADS)


def test_a_table_says_what_was_cut():
    work = next(work for work in WORKLOADS if work.op == "rms_norm")
    assert in_words(*fitted(work, "cpu"), "cpu") == "rms_norm, 8192 x 3584 cut to rows 1024, float32 on cpu"
    audio = next(work for work in WORKLOADS if work.op == "log_mel")
    assert "30 min, float32 to float32 cut to windows 3, samples 163840, float32" in in_words(
        *fitted(audio, "cpu"), "cpu"
    )
    whole = next(work for work in WORKLOADS if work.name == "1 x 1024, 1 new")
    assert "cut" not in in_words(*fitted(whole, "cpu"), "cpu") + shape_id(*fitted(whole, "cpu"), "cpu")
    assert in_words(work, None, "cuda") == "rms_norm, 8192 x 3584, bfloat16 on cuda"


@pytest.mark.parametrize(("op", "make", "defaults"), factories(), ids=lambda x: x if isinstance(x, str) else "")
def test_a_cut_keeps_all_but_the_length(op, make, defaults):
    work = make()
    short, shorter = (work.cut(n) for n in (32, 16))
    assert (short.op, short.name, short.wrt) == (op, work.name, work.wrt)
    sizes = [[x.shape for x in w.make("meta", w.dtype).values()] for w in (short, shorter)]
    assert [x.numel() for x in sizes[0]] != [x.numel() for x in sizes[1]]
    assert all(len(a) == len(b) for a, b in zip(*sizes, strict=True))
    assert all(default is not inspect.Parameter.empty for default in defaults.values())
