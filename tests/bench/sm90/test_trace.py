"""Integers and branches of the walk."""

import pytest

from bench.sm90.ptx import parse
from bench.sm90.trace import Walker


def walked(body: str, thread: int = 0) -> Walker:
    walker = Walker(parse(f".entry k(.param .u32 k_param_0) {{ {body} ret; }}"), lambda *_: None, thread=thread)
    walker.walk()
    return walker


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("add.s32 %x, 7, -9;", 2**32 - 2),
        ("mul.wide.s32 %x, -3, 4;", 2**64 - 12),
        ("mad.wide.s32 %x, -3, 4, 8589934592;", 2**33 - 12),
        ("mul.hi.u32 %x, -1, 16;", 15),
        ("shr.s32 %x, -8, 1;", 2**32 - 4),
        ("shr.u32 %x, -8, 1;", 2**31 - 4),
        ("cvt.s64.s32 %x, -1;", 2**64 - 1),
        ("cvt.u64.u32 %x, -1;", 2**32 - 1),
        ("bfe.u32 %x, 52428, 4, 8;", 0xCC),
        ("bfe.s32 %x, 240, 4, 4;", 2**32 - 1),
        ("div.s32 %x, -7, 2;", 2**32 - 3),
        ("rem.s32 %x, -7, 2;", 2**32 - 1),
        ("lop3.b32 %x, 12, 10, 9, 232;", 8),
        ("setp.lt.s32 %p, -1, 0; selp.b32 %x, 5, 6, %p;", 5),
        ("setp.lt.u32 %p, -1, 0; selp.b32 %x, 5, 6, %p;", 6),
        ("mov.u32 %t, %tid.x; shl.b32 %x, %t, 2;", 12),
        ("elect.sync %y|%p, -1; selp.b32 %x, 1, 0, %p;", 0),
        ("ld.param.b32 %x, [k_param_0];", None),
        ("ld.param.b32 %y, [k_param_0]; add.s32 %x, %y, 1;", None),
        ("ld.param.b32 %y, [k_param_0]; setp.lt.s32 %p, %y, 1; selp.b32 %x, 4, 4, %p;", 4),
        ("mov.b32 %x, 5; add.rn.f32 %x, %a, %b;", None),
    ],
)
def test_integers_are_known_and_data_is_not(body, value):
    assert walked(body, thread=3).values.get("%x") == value


def test_a_loop_on_an_unknown_bound_runs_some_steps_and_ends():
    found = walked("mov.b32 %x, 0; $L: add.s32 %x, %x, 1; bar.sync 0; setp.lt.s32 %p, %x, %n; @%p bra $L;")
    assert found.values["%x"] == 5


def test_an_unknown_branch_goes_where_something_new_is():
    body = "setp.lt.s32 %p, %n, %m; @%p bra $A; bra.uni $B; $A: bar.sync 0; mov.b32 %x, 1; ret; $B: mov.b32 %x, 2;"
    assert walked(body).values["%x"] == 1


def test_a_known_branch_is_followed():
    assert (
        walked("mov.b32 %x, 1; setp.eq.s32 %p, %x, 1; @%p bra $A; mov.b32 %x, 9; $A: add.s32 %x, %x, 1;").values["%x"]
        == 2
    )
