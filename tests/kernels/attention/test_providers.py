"""Other people's attention kernels: what they are told, when they are refused. They need a GPU to run for real."""

import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

import afn_kernels as ak
from afn_kernels.attention import OP, providers
from afn_kernels.attention.window import UNLIMITED

CU = torch.tensor([0, 3, 4, 9], dtype=torch.int32)


def tensors(heads=4, kv_heads=2):
    return torch.randn(9, heads, 16), torch.randn(9, kv_heads, 16), torch.randn(9, kv_heads, 16)


def expected(q, k, v, **options):
    return ak.attention(q, k, v, impl="reference", **options)


@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize(("name", "module"), [("flash3", "flash_attn_interface"), ("flash4", "flash_attn.cute")])
def test_flash_attention_is_told_everything(name, module, with_lse, monkeypatch):
    told = {}

    def varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **rest):
        told.update(rest)
        out = expected(
            q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, scale=softmax_scale, causal=causal
        )
        return (out, None) if with_lse else out

    monkeypatch.setitem(sys.modules, module.partition(".")[0], SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_varlen_func=varlen))
    options = {"cu_seqlens_q": CU, "cu_seqlens_k": CU, "causal": True, "scale": 0.3}
    q, k, v = tensors()
    out = getattr(providers, name)(q, k, v, **options, return_lse=False, carry=None)
    torch.testing.assert_close(out, expected(q, k, v, **options))
    assert told == {"max_seqlen_q": 5, "max_seqlen_k": 5, "deterministic": False}


@pytest.mark.parametrize("causal", [False, True])
def test_pytorchs_varlen_gets_whole_heads_and_a_window(causal, monkeypatch):
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        assert (max_q, max_k, q.shape[1]) == (5, 5, k.shape[1])
        return expected(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, scale=scale, causal=window_size == (-1, 0))

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    options = {"cu_seqlens_q": CU, "cu_seqlens_k": CU, "causal": causal, "scale": 0.3}
    q, k, v = tensors()
    out = providers.varlen(q, k, v, **options, return_lse=False, carry=None)
    torch.testing.assert_close(out, expected(q, k, v, **options))


@pytest.mark.parametrize("causal", [False, True])
def test_one_sequence_through_pytorchs_back_ends(causal):
    """PyTorch's flash attention also has a CPU version."""
    options = {"cu_seqlens_q": None, "cu_seqlens_k": None, "causal": causal, "scale": 0.3}
    q, k, v = tensors()
    out = providers.flash(q, k, v, **options, return_lse=False, carry=None)
    torch.testing.assert_close(out, expected(q, k, v, causal=causal, scale=0.3))


def on_gpu(dtype=torch.bfloat16):
    return [SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=x.shape, __len__=None) for x in tensors()]


def test_what_is_refused_and_why():
    plain = {"return_lse": False, "carry": None}
    assert providers.supports(*on_gpu(), **plain) == ""
    assert "float32" in providers.supports(*on_gpu(torch.float32), **plain)
    assert "gradient" in providers.supports(*on_gpu(), return_lse=True, carry=None)
    assert "cpu" in providers.supports(*tensors(), **plain)
    assert "packed" in providers.supports_one_sequence(*on_gpu(), cu_seqlens_q=CU, causal=False, **plain)
    q, k, v = tensors()
    assert "start" in providers.supports_one_sequence(q[:4], k, v, cu_seqlens_q=None, causal=True, **plain)
    with pytest.raises(ValueError, match=r"flash3.*cannot run this call: flash_attn_interface is not installed"):
        ak.attention(*tensors(), impl="flash3")


@pytest.mark.parametrize(
    ("causal", "window", "told"),
    [
        (True, (7, 0), (7, 0)),
        (False, (7, 3), (7, 3)),
        (False, (UNLIMITED, 3), (-1, 3)),
        (False, (7, UNLIMITED), (7, -1)),
    ],
)
def test_a_window_is_told_in_their_numbers(causal, window, told, monkeypatch):
    found = {}

    def varlen(q, k, v, **rest):
        found.update(rest)
        return q

    def varlen_attn(q, k, v, *lengths, scale, window_size):
        found["varlen"] = window_size
        return q

    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(flash_attn_varlen_func=varlen))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    options = {"cu_seqlens_q": CU, "cu_seqlens_k": CU, "causal": causal, "window": window, "scale": 0.3}
    providers.flash3(*tensors(), **options, softcap=30.0)
    providers.varlen(*tensors(), **options)
    assert found["window_size"] == found["varlen"] == told
    assert found["softcap"] == 30.0


def test_who_takes_windows_and_caps():
    plain = {"return_lse": False, "carry": None, "window": None, "softcap": 0.0}
    window, cap = plain | {"window": (7, 0)}, plain | {"softcap": 30.0}
    for supports, takes in (
        (providers.supports, (True, True)),
        (providers.supports_window, (True, False)),
        (providers.supports_neither, (False, False)),
    ):
        assert not supports(*on_gpu(), **plain)
        assert tuple(not supports(*on_gpu(), **call) for call in (window, cap)) == takes
    table = {row.name: row.supports for row in OP.impls}
    assert table["flash3"] is providers.supports
    assert table["varlen"] is providers.supports_window
    assert table["flash4"] is providers.supports_neither
    one = {"cu_seqlens_q": None, "causal": False}
    q = MagicMock(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(9, 4, 16))
    q.__len__.return_value = 9
    assert "window" in table["cudnn"](q, q, q, **one, **window)
    assert "caps no scores" in table["flash"](q, q, q, **one, **cap)


def test_the_lengths_of_a_batch_are_known(monkeypatch):
    """A GPU is not asked for them, in inference mode either."""
    seen = []
    monkeypatch.setattr(providers, "remember", lambda cu, n: seen.append((cu.tolist(), n)))
    ak.attention(*torch.randn(3, 2, 5, 2, 8))
    assert seen == [([0, 5, 10], 5)]
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "diff", lambda *_: pytest.fail("asked"))
    with torch.inference_mode():
        cu = CU.clone()
        providers.remember(cu, 5)
        assert providers.longest(cu) == 5


def test_the_longest_sequence_is_asked_for_once(monkeypatch):
    cu = CU.clone()
    assert providers.longest(cu) == 5
    monkeypatch.setattr(torch.Tensor, "diff", lambda *_: pytest.fail("asked again"))
    assert providers.longest(cu) == 5
    monkeypatch.undo()
    cu[1] = 0
    assert providers.longest(cu) == 5
    assert providers.longest(torch.tensor([0], dtype=torch.int32)) == 0


FIRST_AND_LATER = """
import torch
import afn_kernels as ak
q = torch.randn(5, 2, 16)
first = torch.compile(lambda q: ak.attention(q, q, q, causal=True), fullgraph=True, backend="eager")(q)
warm = ak.attention(q, q, q, causal=True)
later = torch.compile(lambda q: ak.attention(q, q, q, causal=True), fullgraph=True, backend="eager")(q)
assert torch.equal(first, warm) and torch.equal(later, warm)
"""


def test_auto_is_chosen_while_torch_compile_traces():
    """Before anybody has asked which packages are here, and after."""
    subprocess.run([sys.executable, "-c", FIRST_AND_LATER], check=True)
