"""Windows and capped scores against their definitions, and what may not be combined."""

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import afn_kernels as ak
from afn_kernels.attention import schedule as module
from afn_kernels.attention.window import UNLIMITED, canonical
from tests.budget import assert_same_but_rounding, assert_within
from tests.kernels.test_attention import cu, make, needs_triton
from tests.orders import in_orders

WINDOWS = [(0, 0), (3, 0), (2, 5), (-1, 2), (4, -1), (1000, 1000)]
QUERIES, KEYS = [9, 1, 6, 0], [9, 7, 2, 3]


def defined(q, k, v, causal=False, window=(-1, -1), softcap=0.0):
    """One query, one key at a time, as flash-attn's documentation words it."""
    left, right = window
    outs = []
    for q_, k_, v_ in zip(q.split(QUERIES), k.split(KEYS), v.split(KEYS), strict=True):
        nq, nk = len(q_), len(k_)
        bias = torch.full((nq, nk), float("-inf"), dtype=q.dtype)
        for i, j in itertools.product(range(nq), range(nk)):
            own = i + nk - nq
            if (left < 0 or j >= own - left) and (right < 0 or j <= own + right) and not (causal and j > own):
                bias[i, j] = 0.0
        group = q.shape[1] // k.shape[1]
        score = torch.einsum("qhd,khd->hqk", q_, k_.repeat_interleave(group, 1)) * q.shape[-1] ** -0.5
        score = (softcap * torch.tanh(score / softcap) if softcap else score) + bias
        weight = torch.nan_to_num(score.softmax(-1), nan=0.0)
        outs.append(torch.einsum("hqk,khd->qhd", weight, v_.repeat_interleave(group, 1)))
    return torch.cat(outs)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_is_the_one_of_flash_attn(window, causal):
    tensors = make(QUERIES, KEYS, 4, 2, 16, torch.float64)
    expected = in_orders(lambda: defined(*tensors, causal, window))
    bounds = {"cu_seqlens_q": cu(QUERIES), "cu_seqlens_k": cu(KEYS)}
    for impl in ("matmul", "sdpa", "reference"):
        found = ak.attention(*tensors, **bounds, causal=causal, window=window, impl=impl)
        assert_same_but_rounding(found, expected, name=impl)


@pytest.mark.parametrize("window", [None, (2, 1)])
def test_scores_are_capped(window):
    tensors = [x * 3 for x in make(QUERIES, KEYS, 4, 2, 16, torch.float64)]
    expected = in_orders(lambda: defined(*tensors, False, window or (-1, -1), 2.0))
    bounds = {"cu_seqlens_q": cu(QUERIES), "cu_seqlens_k": cu(KEYS)}
    for impl in ("matmul", "reference"):
        found = ak.attention(*tensors, **bounds, window=window, softcap=2.0, impl=impl)
        assert_same_but_rounding(found, expected, name=impl)


@pytest.mark.parametrize("options", [{"window": (2, 1)}, {"window": (1, 0), "softcap": 0.7}])
def test_gradcheck_of_windows_and_caps(options):
    """Ragged sequences: the padding of a batch sees no key, which must not reach a gradient."""
    q, k, v = (x.requires_grad_() for x in make([3, 1], [3, 1], 2, 1, 4, torch.float64))
    impls = ("matmul", "reference") if "softcap" in options else ("matmul", "sdpa", "reference")
    for impl in impls:
        assert torch.autograd.gradcheck(
            lambda q, k, v, impl=impl: ak.attention(q, k, v, cu_seqlens_q=cu([3, 1]), **options, impl=impl), (q, k, v)
        )


def test_tanh_of_the_kernels(device):
    """Small scores must stay what they are; at 0.6 a polynomial ends."""
    needs_triton()
    from tests.kernels.phases import tanh

    x = torch.cat([torch.logspace(-30, 2, 3000), torch.linspace(0.59, 0.61, 999), torch.zeros(1)])
    x = torch.cat([x, -x])
    exact = x.double().tanh()
    assert_within(tanh(x.to(device)).cpu(), exact, 4e-7 * exact.abs())  # what _triton_math promises


def test_what_hides_nothing_is_no_window():
    assert canonical(False, None) == (False, None)
    assert canonical(False, (-1, -1)) == (False, None)
    assert canonical(False, (-1, 0)) == (True, None)
    assert canonical(True, (-1, 7)) == (True, None)
    assert canonical(True, (7, 7)) == (True, (7, 0))
    assert canonical(False, (7, -1)) == (False, (7, UNLIMITED))


@pytest.mark.parametrize("window", [7, (1,), (1, 2, 3), (-2, 0), (1.0, 0), "ab"])
def test_no_window_at_all(window):
    q, k, v = make([4], [4], 2, 2, 8, torch.float32)
    with pytest.raises(ValueError, match=r"attention: window=.*expected \(left, right\)"):
        ak.attention(q, k, v, window=window)


def test_what_does_not_go_together():
    q, k, v = make([4], [4], 2, 2, 8, torch.float32)
    carry = ak.attention(q, k, v, return_lse=True)
    with pytest.raises(ValueError, match="a window with a carry"):
        ak.attention(q, k, v, window=(1, 0), carry=carry)
    with pytest.raises(ValueError, match=r"softcap=-1.0, expected a finite number above zero"):
        ak.attention(q, k, v, softcap=-1.0)
    with pytest.raises(ValueError, match="impl='sdpa' cannot run this call: PyTorch's fused attention caps no scores"):
        ak.attention(q, k, v, softcap=1.0, impl="sdpa")


def test_one_schedule_serves_layers_with_and_without_a_window(device, monkeypatch):
    """As Gemma 2 alternates them: the same bits as without a schedule, and no further table."""
    needs_triton()
    q, k, v = (x.to(device) for x in make([40, 9], [40, 9], 2, 1, 16, torch.float32))
    bounds = cu([40, 9]).to(device)
    calls = [{}, {"window": (5, 0)}, {"softcap": 2.0}]
    options = {"causal": True, "impl": "triton"}
    alone = [ak.attention(q, k, v, cu_seqlens_q=bounds, **options, **call) for call in calls]
    made = ak.attention_schedule(bounds, total_q=49, head_dim=16, dtype=q.dtype, **options)
    monkeypatch.setattr(module, "tile_table", lambda *_: pytest.fail("made again"))
    for call, expected in zip(calls, alone, strict=True):
        assert torch.equal(ak.attention(q, k, v, schedule=made, **options, **call), expected)


@pytest.mark.parametrize("softcap", [-1.0, float("inf"), float("nan")])
def test_caps_are_finite(softcap):
    q = torch.randn(4, 2, 16)
    with pytest.raises(ValueError, match="attention: softcap="):
        ak.attention(q, q, q, softcap=softcap)
    with pytest.raises(ValueError, match="decode_attention: softcap="):
        ak.decode_attention(q[None, :1], q[None], q[None], torch.tensor([4]), softcap=softcap)


def test_a_window_of_numpys_numbers():
    q = torch.randn(9, 2, 16)
    window = (np.int64(3), np.int32(0))
    assert torch.equal(ak.attention(q, q, q, window=window), ak.attention(q, q, q, window=(3, 0)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_capped_scores_in_16_bits_are_no_worse_than_the_reference(dtype):
    """What "auto" takes on a CPU rounds its scores no earlier."""
    q, k = (3 * torch.randn(128, 2, 32, dtype=torch.float64) for _ in range(2))
    v = torch.randn(128, 2, 32, dtype=torch.float64)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    oracle = ak.attention(q.double(), k.double(), v.double(), softcap=20.0, causal=True, impl="reference")
    # One rounding of the result, beside float32's.
    bound = torch.finfo(dtype).eps * (oracle.abs() / 2 + 0.01)
    assert_within(ak.attention(q, k, v, softcap=20.0, causal=True), oracle, bound)


@pytest.mark.parametrize("impl", ["sdpa", "matmul", "reference"])
def test_shapes_alone_are_enough(impl):
    """On "meta" and with fake tensors there are no boundaries to read."""
    q = torch.empty(2, 5, 4, 16, device="meta")
    out = ak.attention(q, q[:, :, :2], q[:, :, :2], causal=True, impl=impl)
    assert (out.shape, out.device.type) == (q.shape, "meta")
    with FakeTensorMode():
        q = torch.empty(7, 4, 16)
        cu_seqlens = torch.empty(3, dtype=torch.int32)
        assert ak.attention(q, q, q, cu_seqlens_q=cu_seqlens, impl=impl).shape == q.shape
