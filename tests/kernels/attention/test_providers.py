"""Other people's attention kernels: which calls they take, in which order, and why not. They need a GPU to run."""

import subprocess
import sys
from unittest import mock

import pytest
import torch

import afn_kernels as ak
from afn_kernels.attention import OP, provided, providers
from afn_kernels.attention.window import UNLIMITED, flat
from tests.kernels.attention.stand_ins import standing_in

CU = torch.tensor([0, 3, 4, 9], dtype=torch.int32)


def tensors(heads=4, kv_heads=2):
    return torch.randn(9, heads, 16), torch.randn(9, kv_heads, 16), torch.randn(9, kv_heads, 16)


def row(name: str):
    return next(row for row in OP.impls if row.name == name)


def refusals(*tensors, **options) -> dict[str, str]:
    given = {"cu_seqlens_q": None, "cu_seqlens_k": None, "causal": True, "return_lse": False, "carry": None} | options
    return {name: row(name).supports(*tensors, **given) for name in providers.NAMES}


def test_what_is_refused_and_why():
    with pytest.raises(ValueError, match=r"flash3.*cannot run this call: flash_attn_interface is not installed"):
        ak.attention(*tensors(), impl="flash3")
    assert all("cpu" in reason for reason in refusals(*tensors()).values())
    with standing_in():
        half = [x.half() for x in tensors()]
        assert not any(refusals(*half, return_lse=True).values()), "log-sum-exps are no reason"
        for wrong, word in ((tensors(), "float32"), ([x[..., :12] for x in half], "multiple of 8")):
            assert all(word in reason for reason in refusals(*wrong).values()), word
        assert all("scale" in reason for reason in refusals(*half, scale=0.0).values())
        packed = refusals(*half, cu_seqlens_q=CU, cu_seqlens_k=CU)
        assert [name for name, reason in packed.items() if reason] == ["flash", "cudnn"]
        window, cap = refusals(*half, window=(7, 0)), refusals(*half, softcap=30.0)
        assert [name for name, reason in window.items() if reason] == ["cudnn"]
        assert [name for name, reason in cap.items() if reason] == ["varlen", "flash", "cudnn"]


@pytest.mark.parametrize(("generation", "takes"), [(8, (False, False)), (9, (True, True)), (10, (False, True))])
def test_gpus_of_flash_attention(generation, takes, monkeypatch):
    with standing_in():
        monkeypatch.setattr(providers, "generation", lambda device: generation)
        found = refusals(*(x.half() for x in tensors()))
        assert (not found["flash3"], not found["flash4"]) == takes
        assert not found["varlen"]
        wide = refusals(*(x.half().repeat(1, 1, 13) for x in tensors()))
        assert (not wide["flash4"]) == (generation == 9)
        torch.use_deterministic_algorithms(True)
        try:
            assert generation != 9 or "208" in refusals(*(x.half().repeat(1, 1, 13) for x in tensors()))["flash3"]
        finally:
            torch.use_deterministic_algorithms(False)


def test_the_order_without_a_measurement(monkeypatch):
    """FlashAttention 3 and 4 where they are installed, then cuDNN for one length, PyTorch's for packed ones."""
    with standing_in():
        half, packed = [x.half() for x in tensors()], {"cu_seqlens_q": CU}
        monkeypatch.setattr(providers, "WORTH_A_PLAN", 0.0)
        assert ak.explain("attention", *half).chosen == ak.explain("attention", *half, **packed).chosen == "flash3"
        there = {"torch", "torch.nn.attention.varlen", "flash_attn.cute"}
        with mock.patch.object(providers, "installed", there.__contains__):  # undone before the stand-ins are
            assert ak.explain("attention", *half).chosen == ak.explain("attention", *half, **packed).chosen == "flash4"
            there.discard("flash_attn.cute")
            assert ak.explain("attention", *half).chosen == "cudnn"
            assert ak.explain("attention", *half, **packed, return_lse=True).chosen == "varlen"
            reasons = {row.impl: row.reason for row in ak.explain("attention", *half).rows}
            assert "before our own" in reasons["varlen"]


def test_packed_calls_that_auto_leaves_aside(monkeypatch):
    with standing_in():
        half = [x.half() for x in tensors()]
        with torch.inference_mode():
            boundaries = CU.clone()
        found = ak.explain("attention", *half, cu_seqlens_q=boundaries)
        assert "at every call" in found.rows[0].reason
        assert found.chosen not in providers.NAMES
        monkeypatch.setattr(providers, "capturing", lambda x: True)
        found = ak.explain("attention", *half, cu_seqlens_q=CU)
        assert "between replays" in found.rows[0].reason
        assert found.chosen not in providers.NAMES
        assert ak.explain("attention", *half).chosen == "flash3"


@pytest.mark.parametrize(
    ("causal", "window", "told"),
    [
        (True, (7, 0), (7, 0)),
        (False, (7, 3), (7, 3)),
        (False, (UNLIMITED, 3), (-1, 3)),
        (False, (7, UNLIMITED), (7, -1)),
        (True, None, (-1, 0)),
        (False, None, (-1, -1)),
    ],
)
def test_a_window_in_their_numbers(causal, window, told):
    assert provided.theirs(causal, *flat(window)) == told


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
    with monkeypatch.context() as far:
        far.setattr(providers, "_far", lambda x: True)  # as on a GPU
        assert providers.longest(cu) == 5
        far.setattr(torch.Tensor, "diff", lambda *_: pytest.fail("asked again"))
        assert providers.longest(cu) == 5
    cu.data[1:3] = 1  # as a collective writes: nobody counts it
    assert providers.longest(cu) == 8
    providers.remember(cu, 8)
    monkeypatch.setattr(torch.Tensor, "diff", lambda *_: pytest.fail("asked again"))
    assert providers.longest(cu) == 8
    monkeypatch.undo()
    cu[2] = 4
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
