"""Rotations as other models lay them out, against transformers' own functions."""

from types import SimpleNamespace

import pytest
import torch

import afn_kernels as ak
from tests.budget import assert_within

EPS = torch.finfo(torch.float64).eps
T, HEADS, KV_HEADS, D = 6, 4, 2, 16


def drawn(width=D):
    q, k = torch.randn(T, HEADS, D, dtype=torch.float64), torch.randn(T, KV_HEADS, D, dtype=torch.float64)
    return q, k, 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def theirs(apply, q, k, *args, **options):
    """A function of transformers, which takes [B, H, T, D]."""
    found = apply(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *args, **options)
    return [x[0].transpose(0, 1) for x in found]


def assert_same(found, expected):
    """The same angles: a rounding each for sine, cosine, two products and their sum."""
    for x, y in zip(found, expected, strict=True):
        assert_within(x, y, 4 * EPS * (1 + y.abs().max()))


def test_the_leading_features_turn_and_the_rest_pass():
    q, k, inv_freq = drawn(6)
    positions = torch.rand(T, dtype=torch.float64) * 50
    found = ak.rotary(q, k, positions, inv_freq, rotary_dim=6)
    turned = ak.rotary(q[..., :6], k[..., :6], positions, inv_freq)
    assert_same(found, [torch.cat((y, x[..., 6:]), -1) for x, y in zip((q, k), turned, strict=True)])


def test_neighbours_are_those_of_cohere():
    modeling = pytest.importorskip("transformers.models.cohere.modeling_cohere")
    q, k, inv_freq = drawn()
    positions = torch.rand(T, dtype=torch.float64) * 50
    angle = (positions[:, None] * inv_freq).repeat_interleave(2, -1)
    expected = theirs(modeling.apply_rotary_pos_emb, q, k, angle.cos()[None], angle.sin()[None])
    # Theirs computes in float32.
    for found in (
        ak.rotary(q, k, positions, inv_freq, interleaved=True),
        ak.apply_rotary(q, k, angle.cos(), angle.sin(), interleaved=True),
    ):
        for x, y in zip(found, expected, strict=True):
            assert_within(x, y, 4 * torch.finfo(torch.float32).eps * (1 + y.abs().max()))


@pytest.mark.parametrize(
    ("model", "name", "sections", "options"),
    [
        ("qwen2_vl", "Qwen2VLRotaryEmbedding", (2, 3, 3), {}),
        ("qwen3_vl", "Qwen3VLTextRotaryEmbedding", (4, 2, 2), {"sections_interleaved": True}),
    ],
)
def test_sections_are_those_of_qwen(model, name, sections, options):
    """In chunks, and in turns."""
    modeling = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    compose = getattr(getattr(modeling, name), "recomposition_frequencies", None)
    if compose is None:
        pytest.skip("this version of transformers puts them together elsewhere")
    q, k, inv_freq = drawn()
    positions = torch.randint(0, 50, (3, T)).double()
    angle = positions[:, None, :, None] * inv_freq
    tables = [compose(SimpleNamespace(mrope_section=sections), x) for x in (angle.cos(), angle.sin())]
    expected = theirs(modeling.apply_rotary_pos_emb, q, k, *tables)
    assert_same(ak.rotary(q, k, positions, inv_freq, sections=sections, **options), expected)


@pytest.mark.parametrize("width", [D, 8])
@pytest.mark.parametrize("twice", [False, True])
def test_given_cosines_and_sines_are_the_same_rotation(width, twice):
    q, k, inv_freq = drawn(width)
    positions = torch.rand(T, dtype=torch.float64) * 50
    angle = positions[:, None] * inv_freq
    angle = torch.cat((angle, angle), -1) if twice else angle
    found = ak.apply_rotary(q, k, angle.cos(), angle.sin(), rotary_dim=width)
    assert_same(found, ak.rotary(q, k, positions, inv_freq, rotary_dim=width))


def test_gradients_of_every_layout():
    q, k, inv_freq = drawn(8)
    q, k = (x[:2].requires_grad_() for x in (q, k))
    positions = torch.rand(3, 2, dtype=torch.float64)
    for interleaved in (False, True):
        options = {"rotary_dim": 8, "interleaved": interleaved, "sections": (2, 1, 1)}
        assert torch.autograd.gradcheck(
            lambda q, k, options=options: ak.rotary(q, k, positions, inv_freq, **options), (q, k)
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotary_dim": 5}, "rotary_dim=5, expected an even number up to the 16 of a head"),
        ({"rotary_dim": 18}, "rotary_dim=18"),
        ({"sections": (2, 2, 2)}, r"sections \(2, 2, 2\) do not make up the 8 pairs"),
        ({"sections": (4, 4)}, r"expected float32 or float64 \[2, 6\]"),
        ({"positions": torch.zeros(3, T).long(), "sections": (2, 3, 3)}, r"position_ids.flatten\(1\).float\(\)"),
        ({"sections_interleaved": True, "positions": torch.zeros(T)}, "sections_interleaved without sections"),
        ({"positions": [0.0] * T}, "positions is a list, expected a tensor"),
        ({"inv_freq": None, "positions": torch.zeros(T)}, "inv_freq is a NoneType, expected a tensor"),
    ],
)
def test_layouts_that_do_not_fit(options, said):
    q, k, inv_freq = drawn()
    given = {"positions": torch.zeros(3, T, dtype=torch.float64), "inv_freq": inv_freq} | options
    with pytest.raises(ValueError, match=said):
        ak.rotary(q, k, **given)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((T, 5), r"cos is \(6, 5\) on cpu, expected \[6, 8\] or \[6, 16\]"), ((1, T, D), r"cos.flatten\(0, 1\)")],
)
def test_tables_that_do_not_fit(shape, said):
    q, k, _ = drawn()
    with pytest.raises(ValueError, match=said):
        ak.apply_rotary(q, k, torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_cache_takes_keys_whose_rest_passes(impl, interleaved, device):
    row = next(row for row in ak.explain("rotary").rows if row.impl == impl)
    if row.status == "unavailable":
        pytest.skip(row.reason)
    q, k, v = (torch.randn(T, n, D, device=device) for n in (HEADS, KV_HEADS, KV_HEADS))
    inv_freq = drawn(10)[2].float().to(device)
    call = {"positions": torch.arange(float(T), device=device), "inv_freq": inv_freq, "rotary_dim": 10}
    caches = [torch.zeros(9, KV_HEADS, D, device=device) for _ in range(2)]
    slots = torch.tensor([8, 3, -1, 0, 1, 5], device=device)
    options = {"interleaved": interleaved, "impl": impl}
    _, rotated = ak.rotary(q, k, **call, v=v, k_cache=caches[0], v_cache=caches[1], slots=slots, **options)
    assert torch.equal(rotated, ak.rotary(q, k, **call, **options)[1])
    for cache, new in zip(caches, (rotated, v), strict=True):
        kept = slots >= 0
        assert torch.equal(cache[slots[kept]], new[kept])
        assert not cache[[2, 4, 6, 7]].any()
