"""Reading PTX."""

import pytest

from bench.sm90.ptx import parse, split

TEXT = """
.version 8.7
.visible .entry _some$kernel(
  .param .u64 .ptr .global .align 1 _some$kernel_param_0,
  .param .u32 _some$kernel_param_1
)
.reqntid 128
{
  .reg .pred %p<4>;
  .loc 1 2 3
$L__outer:
  mov.u32 %r1, 0x0;   // a comment; with a semicolon
  @!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
$L__inner:
  add.s32 %r1, %r1, 1;
  bar.sync 0;
  @%p1 bra $L__inner;
  {
    .reg .pred complete;
    waitLoop:
    mbarrier.try_wait.parity.shared.b64 complete, [%r5], %r6;
    @!complete bra.uni waitLoop;
  }
  @%p2 bra $L__outer;
  ret;
}
"""


def test_instructions_labels_and_parameters():
    kernel = parse(TEXT)
    assert kernel.name == "_some$kernel"
    assert len(kernel.parameters) == 2
    assert [one.op for one in kernel.code] == [
        "mov.u32", "ld.global.v2.b32", "add.s32", "bar.sync", "bra", "mbarrier.try_wait.parity.shared.b64", "bra.uni",
        "bra", "ret",
    ]  # fmt: skip
    load = kernel.code[1]
    assert load.guard == "%p1"
    assert load.negated
    assert load.written == {"%r1", "%r2"}
    assert load.read == {"%rd1"}
    assert kernel.target(4) == 2
    assert kernel.target(6) == 5
    assert kernel.target(7) == 0


def test_the_innermost_loops_without_those_that_only_wait():
    assert parse(TEXT).loops == [range(2, 5)]
    assert range(0, 8) in parse(TEXT).spans


PAST = """
.entry k(.param .u64 k_param_0) {
$L__loop:
  { .reg .pred any; @!any bra SAME; mul.f32 %f1, %f1, %f2; SAME: }
  { .reg .pred any; @!any bra SAME; mul.f32 %f3, %f3, %f2; SAME: }
  @%p1 bra $L__loop;
  ret;
}
"""


def test_braces_have_labels_of_their_own():
    kernel = parse(PAST)
    assert [kernel.target(at) for at, one in enumerate(kernel.code) if one.op == "bra"] == [2, 4, 0]
    assert kernel.loops == [range(5)]


def test_blocks_end_at_branches():
    blocks = parse(TEXT).blocks
    assert blocks[2] == (5, [2, 5])
    assert blocks[8] == (9, [])


def test_braces_hold_operands_together():
    assert split("{%r1, %r2}, [%rd1, {%r3, %r4}], 5") == ["{%r1, %r2}", "[%rd1, {%r3, %r4}]", "5"]


def test_a_text_without_a_kernel():
    with pytest.raises(ValueError, match=r"no \.entry"):
        parse(".version 8.7")
