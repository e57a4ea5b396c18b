"""The boundary between kernels and PyTorch."""

import pytest
import torch
from torch.autograd import forward_ad

import afn_kernels as ak
from tests.kernels.test_attention import needs_triton


def test_a_tangent_is_refused_or_goes_to_the_reference():
    """A kernel would drop it, and what has no tangent counts as a constant."""
    needs_triton()
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(4, 16), torch.ones(4, 16))
        with pytest.raises(NotImplementedError, match=r"swiglu.* has no forward-mode derivative"):
            ak.swiglu(x, x, impl="triton")
        assert forward_ad.unpack_dual(ak.swiglu(x, x, impl="reference")).tangent is not None
        pcm = forward_ad.make_dual(torch.randn(1, 3200), torch.ones(1, 3200))
        assert forward_ad.unpack_dual(ak.log_mel(pcm)).tangent is not None
        y = ak.swiglu(*torch.randn(2, 4, 16), impl="triton")
    assert torch.equal(y.isfinite(), torch.ones_like(y, dtype=torch.bool))
