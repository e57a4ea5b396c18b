"""Ops under torch.autocast: what PyTorch's lists cast is cast, and nothing else computes in a lower dtype."""

import pytest
import torch

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
