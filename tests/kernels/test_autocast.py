"""Ops under torch.autocast: what PyTorch's lists cast is cast, and nothing else computes in a lower dtype."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import afn_kernels as ak

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("impl", ["sdpa", "matmul", "reference", "auto"])
def test_attention_computes_in_autocasts_dtype(impl):
    q, k, v = (drawn(40, 2, 16) for _ in range(3))
    with torch.autocast(**BF16):
        out = ak.attention(q, k, v.bfloat16(), impl=impl)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, ak.attention(*(x.bfloat16() for x in (q, k, v)), impl=impl), rtol=0, atol=0)


def test_attention_in_float64_stays():
    q = drawn(8, 2, 16).double()
    with torch.autocast(**BF16):
        assert ak.attention(q, q, q).dtype == torch.float64


def test_products_inside_an_op_keep_their_dtype():
    """The reference of log-mel is a product with the DFT's matrix: in bfloat16 it would have two digits."""
    pcm = drawn(1, 3200).clamp(-1, 1)
    with torch.autocast(**BF16):
        found = ak.log_mel(pcm, impl="reference")
    torch.testing.assert_close(found, ak.log_mel(pcm, impl="reference"), rtol=0, atol=0)


def test_one_graph_under_autocast():
    q = drawn(40, 2, 16).requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(q):
        return ak.attention(q, q, q)

    with torch.autocast(**BF16):
        out = run(q)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert q.grad.dtype == torch.float32


@contextmanager
def gpu_autocast():
    """Fake tensors on a GPU that need not be there, under its autocast to bfloat16."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


MIXED = {
    "rms_norm": lambda x, w: ak.rms_norm(x, w, residual=x),
    "rms_norm, float32 stream": lambda x, w: ak.rms_norm(x, w, residual=x.float(), offset=1.0),
    "bias_gelu": lambda x, w: (ak.bias_gelu(x, w),),
    "swiglu": lambda x, w: (ak.swiglu(x, x),),
    "geglu": lambda x, w: (ak.geglu(x, x),),
    "layer_norm": lambda x, w: ak.layer_norm(x, w, w, residual=x),
    "layer_norm, float32 stream": lambda x, w: ak.layer_norm(x, w, residual=x.float()),
    "pool_norm": lambda x, w: (ak.pool_norm(x, w, w),),
}


@pytest.mark.parametrize("name", MIXED)
def test_norms_and_activations_on_a_cpu_take_what_comes(name):
    x, w = drawn(6, 16).bfloat16(), drawn(16)
    with torch.autocast(**BF16):
        found = MIXED[name](x, w)
    assert found[0].dtype == torch.bfloat16
    for a, b in zip(found, MIXED[name](x, w), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_layer_norms_are_in_float32(name, dtype):
    with gpu_autocast():
        x = torch.empty(6, 16, dtype=dtype, device="cuda", requires_grad=True)
        w = torch.empty(16, dtype=torch.float32, device="cuda", requires_grad=True)
        y, *stream = MIXED[name](x, w)
        full = name.startswith(("layer_norm", "pool_norm"))
        assert F.layer_norm(x, (16,), w, w).dtype == torch.float32
        assert y.dtype == (torch.float32 if full else dtype)
        assert all(h.dtype == (torch.float32 if full or "stream" in name else dtype) for h in stream)


def test_a_float64_layer_norm_on_a_gpu_stays():
    with gpu_autocast():
        x = torch.empty(6, 16, dtype=torch.float64, device="cuda")
        assert ak.layer_norm(x).dtype == torch.float64


def test_a_block_in_float32_trains_under_autocast():
    """Bfloat16 products beside float32 norms and a float32 stream: every parameter has a float32 gradient."""
    torch.manual_seed(1)
    norm, mlp, last = ak.nn.RMSNorm(16), ak.nn.GeGLU(16, 24), ak.nn.LayerNorm(16)
    project = nn.Linear(16, 16)
    stream = drawn(6, 16)
    with torch.autocast(**BF16):
        y, stream = norm(project(stream), stream)
        y, stream = last(mlp(y), stream)
    assert (y.dtype, stream.dtype) == (torch.bfloat16, torch.float32)
    (y.float().square().sum() + stream.sum()).backward()
    for parameter in (p for module in (norm, mlp, last, project) for p in module.parameters()):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
