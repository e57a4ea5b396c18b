"""Gradient sums in host memory: those of float32 addition, and their norm that of the gradient clip."""

import pytest
import torch
from torch import nn

from afn_model.train import gradient_offload
from afn_model.train.gradient_offload import HostGradients
from tests.model.train import late

CPU = torch.device("cpu")


@pytest.mark.parametrize("when", ["at once", "late"])
def test_sums_and_norms_are_those_of_gradients_that_stay(when, monkeypatch):
    if when == "late":
        late.lanes(monkeypatch, gradient_offload)
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.empty(n, 3)) for n in (5, 1, 4, 2)]
    plain = [nn.Parameter(torch.empty(n, 3)) for n in (5, 1, 4, 2)]
    found = HostGradients(CPU)
    found.places = {p: torch.zeros_like(p) for p in parameters}
    fetched, fetch = [], found.fetch
    monkeypatch.setattr(found, "fetch", lambda p: (fetched.append(len(found.coming)), fetch(p)))
    for _ in range(2):
        for turn in range(3):
            for number in (3, 1, 0, 2) if turn != 1 else (2, 3, 0):  # without audio a backward passes some over
                gradient = torch.randn(plain[number].shape, dtype=torch.bfloat16)
                found.add(parameters[number], gradient.clone())
                with torch.no_grad():
                    p = plain[number]
                    p.grad = gradient.float() if p.grad is None else p.grad + gradient.float()
            assert len(found.leaving) <= 1
            assert len(found.coming) <= 1
        norm = found.clip(parameters, 0.5)
        assert torch.equal(norm, nn.utils.clip_grad_norm_(plain, 0.5))
        found.settle()
        for p, other in zip(parameters, plain, strict=True):
            assert torch.equal(found.places[p] * found.scale, other.grad)
            other.grad = None
        found.clear()
        assert not found.norms
    assert float(found.clip(parameters, 1.0)) == 0
    assert max(fetched) <= 1, "one that was expected, and the one that came"
    if when == "late":
        late.finish()
