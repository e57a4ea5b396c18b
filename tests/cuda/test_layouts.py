"""Where the emulation has operands and registers of products, and where CuTe has them (layouts.txt, by layouts.cpp)."""

import ctypes
import re
from functools import reduce
from operator import xor
from pathlib import Path

import pytest

from tests.cuda import compiler, gemm, library

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")
ROWS = re.findall(r"^(\w+) (.*?) x (.*) y (.*)$", Path(__file__).with_name("layouts.txt").read_text(), re.MULTILINE)


def image(x: int, bits: list[int]) -> int:
    return reduce(xor, (bit for i, bit in enumerate(bits) if x >> i & 1), 0)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> ctypes.CDLL:
    found = library("gemm", gemm.folder(tmp_path_factory.mktemp("csrc")))
    found.afn_operand_byte.argtypes = (ctypes.c_uint64, *[ctypes.c_int] * 4)
    return found


def test_the_table_has_every_layout():
    names = [f"{kind} {what}" for kind, what, *_ in ROWS]
    assert len([name for name in names if name.startswith("operand 2 k")]) == 4
    assert len([name for name in names if name.startswith("operand 2 mn")]) == 5
    assert len([name for name in names if name.startswith("operand 1 k")]) == 4
    assert names[-5:] == ["d 64", "d 128", "d 256", "a 2", "a 1"]


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:2]) for row in ROWS])
def test_layout(row, machine):
    kind, what, *images = row
    x_bits, y_bits = ([int(word) for word in words.split()] for words in images)
    if kind == "operand":
        bytes_, major, swizzle, leading, stride, number = (int(x) if x.isdigit() else x for x in what.split())
        assert number == {0: 0, 32: 3, 64: 2, 128: 1}[swizzle]
        descriptor = leading >> 4 << 16 | stride >> 4 << 32 | number << 62
        here = lambda x, y: machine.afn_operand_byte(descriptor, major == "mn", bytes_, x, y)  # noqa: E731
    else:
        here = lambda x, y: machine.afn_place(x, y, int(what) if kind == "a" else 0)  # noqa: E731
    for x in range(1 << len(x_bits)):
        for y in range(1 << len(y_bits)):
            assert here(x, y) == image(x, x_bits) ^ image(y, y_bits), (x, y)
