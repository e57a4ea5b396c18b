"""csrc/cuda/attention.cu: on a CPU its blocks run as threads, with --device cuda on the GPU, a Hopper."""

import itertools
import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda, _triton
from afn_kernels.attention import hopper as forwards
from afn_kernels.attention.config import CUDA_QUERIES
from tests.budget import assert_within_budget, fresh
from tests.cuda import emulated
from tests.kernels.harness import poisoned
from tests.orders import in_orders

HALVES = (torch.bfloat16, torch.float16)
INF, NAN = float("inf"), float("nan")


def cu(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@pytest.fixture(autouse=True)
def hopper(device):
    if reason := _cuda.hopper():
        pytest.skip(reason)


def made(device, queries, keys, heads=2, kv_heads=1, width=128, dtype=torch.bfloat16):
    shapes = (sum(queries), heads, width), (sum(keys), kv_heads, width), (sum(keys), kv_heads, width)
    g = fresh()
    tensors = [torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype) for shape in shapes]
    return tensors, {"cu_seqlens_q": cu(queries).to(device), "cu_seqlens_k": cu(keys).to(device)}


def run(tensors, *, programs=None, backwards=False, turns=0, **options):
    device = tensors[0].device
    with (
        emulated(backwards=backwards, schedule=turns) if device.type == "cpu" else nullcontext(),
        poisoned(),
        pytest.MonkeyPatch.context() as patch,
    ):
        if programs:
            patch.setattr(_triton, "programs", lambda device: programs)
        return ak.attention(*tensors, **options, impl="cuda")


def oracle(tensors, **options):
    """The reference in float64, and orders of it in the tensors' own precision."""
    carry = options.pop("carry", None)
    wide = {} if carry is None else {"carry": tuple(x.double() for x in carry)}
    own = {} if carry is None else {"carry": carry}
    exact = ak.attention(*(x.double() for x in tensors), **options, **wide, impl="reference")
    return exact, in_orders(partial(ak.attention, *tensors, **options, **own, impl="reference"), 4)


def check(found, exact, same):
    for f, e, *s in zip(found, exact, *same, strict=True):
        assert_within_budget(f, s, e)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", sorted(CUDA_QUERIES))
def test_a_carry_goes_on(width, dtype, device):
    """Rows with a carry and keys, with one of them and with neither. The weights are of 16 bits, whose rounding the
    budget of float32 does not have: it is that of plain PyTorch on an output of 16 bits."""
    queries, keys = [150, 7, 60], [140, 0, 30]
    tensors, options = made(device, queries, keys, width=width, dtype=dtype)
    out = torch.randn(tensors[0].shape, generator=fresh()).to(device)
    lse = torch.randn(tensors[0].shape[:2], generator=fresh()).to(device) + 3
    lse[::3], out[::3] = -INF, NAN
    carry = out, lse
    found = run(tensors, causal=True, carry=carry, **options)
    assert [x.dtype for x in found] == [torch.float32] * 2
    clean = torch.where(torch.isnan(out), 0.0, out), lse
    exact, same = oracle(tensors, causal=True, carry=clean, **options)
    nobody = exact[1] == -INF
    assert nobody.any()
    assert torch.equal(found[1] == -INF, nobody)
    assert not found[0][nobody].any()
    seen = lambda x, to=torch.float64: (x[0].to(to), x[1].masked_fill(nobody, 0.0))  # noqa: E731
    check(seen(found, dtype), seen(exact), [seen(x, dtype) for x in same])
    only = slice(150, 157)  # of the sequence without keys
    assert torch.equal(found[0][only], clean[0][only])


@pytest.mark.parametrize("width", sorted(CUDA_QUERIES))
@pytest.mark.parametrize("causal", [False, True])
def test_what_other_sequences_hold_does_not_spread(width, causal, device):
    """A block of keys reaches into the next sequence, whose keys and values are NaN and infinite."""
    queries, keys = [130, 60, 33], [140, 60, 200]
    (q, k, v), options = made(device, queries, keys, heads=1, width=width)
    alone = run((q[:130], k[:140], v[:140]), causal=causal)
    k[140:200], v[140:170], v[170:200], q[130:190] = NAN, NAN, INF, NAN
    found = run((q, k, v), causal=causal, **options)
    assert torch.equal(found[:130], alone)
    assert torch.isfinite(found[190:]).all()
    assert torch.isnan(found[130:190]).any()


def test_blocks_and_sequences_do_not_change_bits(device):
    """One block with all tiles, or many, in either order, threads in another one: a tile's result is its own."""
    queries, keys = [300, 0, 1, 129], [300, 5, 130, 129]
    tensors, options = made(device, queries, keys, heads=1)
    options |= {"causal": True, "return_lse": True}
    first = run(tensors, programs=1, **options)
    for more in ({"programs": 7}, {"programs": 5, "backwards": True}, {"programs": 2, "turns": 1}):
        assert all(map(torch.equal, run(tensors, **more, **options), first))
    parts = zip(tensors[0].split(queries), tensors[1].split(keys), tensors[2].split(keys), strict=True)
    for rows, part in zip(first[0].split(queries), parts, strict=True):
        assert torch.equal(rows, run(part, causal=True))


@pytest.mark.parametrize("growth", [3.0, 40.0], ids=["below what is let be", "above it"])
def test_maxima_that_grow_from_block_to_block(growth, device):
    """Scores that rise by ``growth`` in base 2 every 128 keys for the first head, and fall for the second."""
    q, k, v = made(device, [3], [500], 2, 2, 64, torch.float16)[0]
    block = torch.arange(500, device=device) // 128 * growth * 0.6931
    k[:, :, 0] = torch.stack((block, -block), 1)
    q[:, :, 0] = 1.0
    options = {"scale": 1.0, "return_lse": True}
    check(run((q, k, v), **options), *oracle((q, k, v), **options))


def test_tensors_that_no_map_describes_are_copied(device):
    (q, k, v), options = made(device, [40], [40], width=64)
    expected = run((q, k, v), **options)
    odd = torch.zeros(40 * 64 + 1, dtype=q.dtype, device=device)[1:].view(40, 1, 64).copy_(v)
    wide = torch.zeros(40, 1, 68, dtype=q.dtype, device=device)[:, :, :64].copy_(k)
    apart = torch.zeros(40, 2, 64, 2, dtype=q.dtype, device=device)[..., 0].copy_(q)
    assert torch.equal(run((apart, wide, odd), **options), expected)
    one = torch.zeros(1, 1, 64, dtype=q.dtype, device=device).expand(40, 1, 64)
    assert torch.equal(run((q, one, v), **options), run((q, one.contiguous(), v), **options))
    turned = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    assert torch.equal(run(tuple(turned), **options), expected)


@pytest.mark.parametrize("empty", ["queries", "keys", "sequences"])
def test_nothing_to_do(empty, device):
    queries, keys = {"queries": ([0], [4]), "keys": ([4], [0]), "sequences": ([], [])}[empty]
    tensors, options = made(device, queries, keys)
    out, lse = run(tensors, return_lse=True, **options)
    assert out.shape == tensors[0].shape
    assert not out.any()
    assert (lse == -INF).all()


def test_a_schedule_has_its_tables(device):
    tensors, options = made(device, [200, 30], [200, 30], width=64)
    with emulated() if device.type == "cpu" else nullcontext():
        schedule = ak.attention_schedule(
            options["cu_seqlens_q"], total_q=230, head_dim=64, dtype=tensors[0].dtype, causal=True, impl="cuda"
        )
    assert (192, False) in schedule.tables
    expected = run(tensors, causal=True, **options)
    assert torch.equal(run(tensors, causal=True, schedule=schedule), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 96}, "a head of 96 is not 64 or 128"),
        ({"dtype": torch.float32}, "float32"),
        ({"window": (3, 3)}, "it takes no window and caps no scores"),
        ({"softcap": 2.0}, "it takes no window and caps no scores"),
        ({"scale": -1.0}, "the scale -1.0 is not above zero"),
    ],
)
def test_what_it_does_not_take(change, reason, device):
    shape = {name: change.pop(name) for name in ("width", "dtype") if name in change}
    tensors, _ = made(device, [4], [4], **shape)
    with pytest.raises(ValueError, match=f"impl='cuda' cannot run this call: .*{re.escape(reason)}"):
        run(tensors, **change)


def test_auto_takes_it_nowhere_unmeasured(device):
    (q, k, v), options = made(device, [4], [4])
    with emulated() if device.type == "cpu" else nullcontext():
        rows = {
            row.impl: row
            for row in ak.explain(
                "attention", q, k, v, causal=False, scale=1.0, **options, return_lse=False, carry=None
            ).rows
        }
    assert (rows["cuda"].status, rows["cuda"].reason) == ("avoided", "not yet timed on a GPU")


def test_shared_memory_of_a_hopper_holds_it():
    for width in CUDA_QUERIES:
        assert forwards.shared(width) <= 227 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("source", ["attention", "paged_attention"])
def test_what_the_compiler_makes_of_a_step(source):
    """No spills, two waits a step as written, and between them the exponentials of the next block's scores."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    pytest.importorskip("triton", reason="its tools read machine code")
    from bench.sm90 import sass
    from bench.sm90.machine import cuda_binary

    for (_, width), kernel in forwards.kernels(source).items():
        read, code = cuda_binary(kernel, forwards.shared(width))
        assert (read.spills, read.blocks) == (0, 1), kernel.name
        step = [one for one in sass.main_loop(code) if one.op.startswith(("HGMMA", "MUFU.EX2", "WARPGROUP.DEPBAR"))]
        ops = "".join({"H": "p", "M": "e", "W": "w"}[one.op[0]] for one in step)
        products = width // 16 + forwards.KEYS // 16
        assert re.fullmatch(f"p{{{products}}}we{{66}}w", ops), f"{kernel.name}: {ops}"
