"""The forward's running softmax, whose maxima may lag behind, and the PTX that this allows to go past."""

import re
import struct

import pytest
import torch

import afn_kernels as ak
from tests.budget import assert_within_budget
from tests.kernels.test_attention import make, needs_triton
from tests.orders import in_orders


@pytest.mark.parametrize("growth", [3.0, 40.0], ids=["below what is let be", "above it"])
def test_maxima_that_grow_from_block_to_block(growth, device):
    """Scores that rise by ``growth`` in base 2 every 16 keys, for the first head, and fall for the second."""
    needs_triton()
    q, k, v = (x.to(device) for x in make([3], [70], 2, 2, 16, torch.float32))
    block = torch.arange(70, device=device) // 16 * growth * 0.6931
    k[:, :, 0] = torch.stack((block, -block), 1)
    q[:, :, 0] = 1.0

    def run(impl, *tensors):
        out, lse = ak.attention(*tensors, scale=1.0, return_lse=True, impl=impl)
        return out, lse

    oracle = run("reference", q.double(), k.double(), v.double())
    same = in_orders(lambda: run("reference", q, k, v))
    for found, o, *s in zip(run("triton", q, k, v), oracle, *same, strict=True):
        assert_within_budget(found, s, o)


def execute(code: str, lanes: list[dict[str, float]]) -> list[dict[str, float]]:
    """What a block of PTX does to the registers of a warp's lanes."""
    bits = lambda x: struct.unpack("I", struct.pack("f", x))[0] if isinstance(x, float) else x  # noqa: E731
    value = lambda lane, name: lane[name] if name in lane else int(name, 16)  # noqa: E731
    lines = [line.strip() for line in re.split(r"[;{}]|(?<=SAME:)", code)]
    at = 0
    while at < len(lines):
        name, _, rest = lines[at].partition(" ")
        to, *others = re.split(r", ", rest)
        if name == "@!any" and not lanes[0]["any"]:
            at = lines.index("SAME:")
        any_lane = any(lane.get("any") for lane in lanes)
        for lane in lanes:
            given = [value(lane, x) for x in others if name in ("mov.b32", "and.b32", "setp.ne.b32", "mul.f32")]
            match name:
                case "mov.b32":
                    lane[to] = bits(given[0])
                case "and.b32":
                    lane[to] = given[0] & given[1]
                case "setp.ne.b32":
                    lane[to] = given[0] != given[1]
                case "vote.sync.any.pred":
                    lane[to] = any_lane
                case "mul.f32":
                    lane[to] = given[0] * given[1]
                case "" | ".reg" | "SAME:" | "@!any":
                    pass
                case _:
                    raise ValueError(lines[at])
        at += 1
    return lanes


@pytest.mark.parametrize("factor", [1.0, 1 - 2**-24, 0.5, 2.0**-126, 0.0])
@pytest.mark.parametrize("at", [(0, 0), (1, 3), (1, 7)])
def test_a_warp_multiplies_unless_every_factor_is_one(factor, at):
    pytest.importorskip("triton")
    from afn_kernels.attention.triton import _unless_one

    count = 8
    code, constraints = _unless_one(count)
    assert constraints.split(",") == ["=f"] * count + [str(i) for i in range(count)] + ["f"] * count
    lanes = [{f"${i}": 3.0 + i for i in range(count)} | {f"${2 * count + i}": 1.0 for i in range(count)} for _ in "ab"]
    lane, which = at
    lanes[lane][f"${2 * count + which}"] = factor
    found = execute(code, lanes)
    for number, registers in enumerate(found):
        products = [(3.0 + i) * (factor if (number, i) == at else 1.0) for i in range(count)]
        assert [registers[f"${i}"] for i in range(count)] == products
