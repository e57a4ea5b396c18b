"""What a type checker sees: the return type of an op follows from its arguments."""

import typing

import pytest
import torch

import afn_kernels as ak

PAIR = tuple[torch.Tensor, torch.Tensor]
NOTHING = type(None)


@pytest.mark.skipif(not hasattr(typing, "get_overloads"), reason="Python 3.10 keeps no overloads")
@pytest.mark.parametrize(
    ("module", "name", "argument", "kinds"),
    [
        ("rms_norm", "rms_norm", "residual", {NOTHING: torch.Tensor, torch.Tensor: PAIR}),
        ("swiglu", "swiglu", "out_dtype", {NOTHING: torch.Tensor, torch.dtype: PAIR}),
        ("layer_norm", "layer_norm", "residual", {NOTHING: torch.Tensor, torch.Tensor: PAIR}),
        ("attention", "attention", "return_lse", {typing.Literal[False]: torch.Tensor, typing.Literal[True]: PAIR}),
        ("attention", "attention", "carry", {NOTHING: torch.Tensor, PAIR: PAIR}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_overloads_by_what_changes_the_result(module, name, argument, kinds):
    import importlib

    written = getattr(importlib.import_module(f"afn_kernels.{module}"), name)
    written = getattr(written, "__wrapped__", written)
    found = [typing.get_type_hints(one) for one in typing.get_overloads(written)]
    assert found, "no overloads"
    for kind, result in kinds.items():
        assert any(hints[argument] == kind and hints["return"] == result for hints in found), (kind, result)
    parameters = set(typing.get_type_hints(getattr(ak, name)))
    assert all(set(hints) == parameters for hints in found), "an overload lacks an argument"


def test_what_is_offered_is_what_is_public():
    offered = set(dir(ak))
    assert {*ak.__all__, "nn", "FeatureExtractor", "ParakeetFeatureExtractor"} == offered - {"__version__"}
