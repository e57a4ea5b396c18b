"""Kernels of a few lines of PTX, each with one thing missing."""

import pytest

from bench.sm90.hazards import hazards, tiles
from bench.sm90.ptx import parse

# Two buffers of 64 rows of 128 bytes; a step copies the next one while the matrix instruction reads this one.
PIPELINED = """
.visible .entry pipelined(.param .u64 pipelined_param_0, .param .u32 pipelined_param_1)
{
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 4;
  mov.b32 %r3, global_smem;
  add.s32 %r4, %r3, %r2;
  cp.async.cg.shared.global [ %r4 + 0 ], [ %rd1 + 0 ], 0x10, 16;
  cp.async.commit_group;
  mov.b32 %r5, 0;
  mov.b32 %r6, 0;
$L__step:
  cp.async.wait_group 0;                                    // arrived
  bar.sync 0;                                               // arrived for all
  shl.b32 %r7, %r5, 13;
  add.s32 %r8, %r3, %r7;
  bfe.u32 %r9, %r8, 4, 14;
  cvt.u64.u32 %rd2, %r9;
  or.b64 %rd3, %rd2, 4611686293305294848;
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%r20, %r21}, %rd3, %rd3, %p1, 1, 1, 0, 0;
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;                          // read
  add.f32 %r30, %r20, %r21;
  bar.sync 0;                                               // read by all
  xor.b32 %r5, %r5, 1;
  shl.b32 %r10, %r5, 13;
  add.s32 %r11, %r4, %r10;
  cp.async.cg.shared.global [ %r11 + 0 ], [ %rd1 + 0 ], 0x10, 16;
  cp.async.commit_group;
  setp.lt.s32 %p2, %r6, %r99;
  @%p2 bra $L__step;
  cp.async.wait_group 0;
  ret;
}
"""
# The right operand was stored, the left one is in registers.
STORED = """
.visible .entry stored(.param .u64 stored_param_0)
{
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 4;
  mov.b32 %r3, global_smem;
  add.s32 %r4, %r3, %r2;
  st.shared.v4.b32 [%r4+1024], {%r5, %r6, %r7, %r8};
  fence.proxy.async.shared::cta;                            // fenced
  bar.sync 0;                                               // fenced for all
  add.s32 %r9, %r3, 1024;
  bfe.u32 %r10, %r9, 4, 14;
  cvt.u64.u32 %rd2, %r10;
  or.b64 %rd3, %rd2, 4611686293305294848;
  wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%r20, %r21}, {%r30, %r31, %r32, %r33}, %rd3, %p1, 1, 1, 0;
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;                          // multiplied
  st.global.b32 [%rd1], %r20;
  mov.b32 %r30, 0;
  ret;
}
"""


def without(text: str, mark: str) -> str:
    """The text less the line with this comment."""
    lines = text.splitlines()
    (line,) = [line for line in lines if line.endswith(f"// {mark}")]
    return "\n".join(x for x in lines if x != line)


def rules(text: str) -> set[str]:
    return {one.rule for one in hazards(parse(text))}


def test_whole_kernels_break_nothing():
    assert not hazards(parse(PIPELINED))
    assert not hazards(parse(STORED))


@pytest.mark.parametrize(
    ("text", "mark", "rule"),
    [
        (PIPELINED, "arrived", "copies have arrived"),
        (PIPELINED, "arrived for all", "copies have arrived"),
        (PIPELINED, "read", "buffers are free"),
        (PIPELINED, "read", "results are there"),
        (STORED, "fenced", "stores are fenced"),
        (STORED, "fenced for all", "stores are fenced"),
        (STORED, "multiplied", "results are there"),
        (STORED, "multiplied", "operands stay"),
    ],
)
def test_a_line_that_is_missing_is_found(text, mark, rule):
    assert rule in rules(without(text, mark))


def test_a_barrier_is_asked_for_where_the_buffers_need_it():
    """With two buffers the barrier at the head of a step is enough; with one the buffer is refilled at once."""
    assert not rules(without(PIPELINED, "read by all"))
    one = PIPELINED.replace("xor.b32 %r5, %r5, 1", "xor.b32 %r5, %r5, 0")
    assert not rules(one)
    assert rules(without(one, "read by all")) == {"buffers are free"}


def test_a_refill_of_the_buffer_in_use_is_found():
    wrong = PIPELINED.replace("xor.b32 %r5, %r5, 1", "xor.b32 %r5, %r5, 0").replace(
        "wait_group.sync.aligned 0", "wait_group.sync.aligned 1"
    )
    assert "buffers are free" in rules(wrong)
    assert rules(PIPELINED.replace("wgmma.wait_group.sync.aligned 0", "wgmma.wait_group.sync.aligned 1")) == {
        "results are there"
    }


def test_a_fence_may_follow_the_barrier():
    lines = STORED.splitlines()
    fence, barrier = (next(i for i, x in enumerate(lines) if x.endswith(end)) for end in ("// fenced", "for all"))
    lines[fence], lines[barrier] = lines[barrier], lines[fence]
    assert not hazards(parse("\n".join(lines)))


def test_what_cannot_be_read_is_said():
    assert "addresses are known" in rules(PIPELINED.replace("mov.b32 %r5, 0", "mov.b32 %r5, %r77"))


def test_a_descriptor_covers_what_it_reads():
    descriptor = 4611686293305294848 | (2048 >> 4)
    assert tiles(descriptor, 64, 16, 2, transposed=False) == [(2048, 2048 + 8 * 1024)]
    transposed = tiles(4611686293372403712 | (2048 >> 4), 128, 16, 2, transposed=True)
    assert len(transposed) == 2
    assert transposed[0][0] == 2048
