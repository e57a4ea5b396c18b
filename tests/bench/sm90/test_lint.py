"""The rules that need no walk, each broken by a few lines of PTX."""

import pytest

from bench.sm90 import lint
from bench.sm90.hazards import Finding
from bench.sm90.ptx import parse

STEP = """
.entry k(.param .u64 k_param_0) {{
$L:
  cp.async.wait_group {copies};
  bar.sync 0;
  wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {{%r20}}, {left}, %rd3, %p1, 1, 1, 0, 0;
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned {pending};
  cp.async.cg.shared.global [ %r4 + 0 ], [ %rd1 + 0 ], 0x10, 16;
  cp.async.commit_group;
  @%p2 bra $L;
  wgmma.wait_group.sync.aligned 0;
  cp.async.wait_group 0;
  ret;
}}
"""


def step(copies: int = 1, left: str = "{%r30, %r31}", pending: int = 0):
    return parse(STEP.format(copies=copies, left=left, pending=pending))


def test_operands_in_registers_are_not_left_pending():
    assert not lint.register_operands(step(), (3, 6))
    assert not lint.register_operands(step(left="%rd4", pending=1), (3, 6))
    assert lint.register_operands(step(pending=1), (3, 6))
    assert not lint.register_operands(step(pending=1), (3, 7)), "Triton 3.7 waits by itself"


def test_a_loop_that_waits_for_all_its_copies():
    assert not lint.pipelined(step(copies=1)), "what waits for all stands behind the loop"
    assert lint.pipelined(step(copies=0))


LOADS = """
.entry log_mel_kernel(.param .u64 log_mel_kernel_param_0, .param .u64 log_mel_kernel_param_1) {
  ld.param.b64 %rd1, [log_mel_kernel_param_0];
  ld.param.b64 %rd2, [log_mel_kernel_param_1];
  add.s64 %rd3, %rd1, 64;
$L:
  selp.b64 %rd4, %rd3, %rd5, %p1;
  ld.global.b32 { %r1 }, [ %rd4 + 0 ];
  ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd2 + 0 ];
  add.s64 %rd5, %rd4, 128;
  @%p2 bra $L;
  ret;
}
"""
NAMES = {"log_mel_kernel_param_0": "pcm", "log_mel_kernel_param_1": "matrices"}


def test_width_of_loads_by_argument():
    assert lint.widest_loads(parse(LOADS)) == {"log_mel_kernel_param_0": 4, "log_mel_kernel_param_1": 16}
    assert not lint.vector_widths(parse(LOADS), NAMES, {"pcm": 4, "matrices": 2})
    wide = parse(LOADS.replace("ld.global.b32 { %r1 }", "ld.global.v2.b32 { %r1, %r9 }"))
    assert lint.vector_widths(wide, NAMES, {"pcm": 4, "matrices": 2})
    assert lint.vector_widths(parse(LOADS), NAMES, {"pcm": 2, "matrices": 2}), "two samples of 16 bits"


ARRIVAL = """
.entry k(.param .u64 k_param_0, .param .u64 k_param_1, .param .u64 k_param_2) {
  ld.param.b64 %rd1, [k_param_0];
  ld.param.b64 %rd2, [k_param_1];
  ld.param.b64 %rd3, [k_param_2];
  ld.global.b32 %r8, [%rd1];
  st.global.b32 [%rd1], %r1;
  bar.sync 0;
  atom.global.gpu.acq_rel.add.u32 %r2, [%rd2], %r3;
  bar.sync 0;
  ld.global.cg.b32 %r4, [%rd1];
  ld.global.b32 %r5, [%rd3];
  ret;
}
"""


def test_a_last_block_reads_past_l1():
    assert not lint.last_block(parse(ARRIVAL)), "what nobody stores may come from L1, and so may what is read before"
    assert lint.last_block(parse(ARRIVAL.replace("ld.global.cg", "ld.global")))


def test_persistent_programs_fit():
    assert not lint.waves(396, 396, 132)
    assert not lint.waves(8192, 396, 132), "a program per row"
    assert lint.waves(528, 396, 132)


def test_a_finding_has_its_reason_or_none(monkeypatch):
    monkeypatch.setattr(lint, "EXCEPTIONS", (lint.Allowed("a rule", "k", "16K", "because"),))
    one = Finding("a rule", "here", "what")
    assert lint.judged("causal 16K", "k", one)["reason"] == "because"
    assert not lint.judged("causal 32K", "k", one)["reason"]
    assert not lint.judged("causal 16K", "other", one)["reason"]


@pytest.mark.parametrize("one", lint.EXCEPTIONS, ids=str)
def test_exceptions_have_reasons(one):
    assert len(one.reason) > 10
    assert one.workload
