"""What must work on every supported version of PyTorch, Triton, NumPy and transformers.

``python -m tests.versions`` runs this where a wheel is installed and no checkout is near. Most checks are those of the
ordinary suite, called for one case of each op.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import afn_kernels as ak
from afn_kernels import _triton, _versions
from bench.ops import workloads
from tests.house.test_imports import (
    test_imports_nothing_heavier_than_torch_and_takes_less_than_half_as_long as imports_torch_alone,
)
from tests.house.test_imports import test_works_without_extension_triton_and_gpu as works_without_triton
from tests.kernels import test_every_op as every_op
from tests.kernels.cases import CASES
from tests.kernels.conftest import interpreter  # noqa: F401  a fixture
from tests.kernels.harness import check_budget
from tests.kernels.test_qkv_rotary import test_the_reference_is_a_bias_and_rotary as qkv_rotary
from tests.kernels.test_quantize_fp8 import test_every_bit_is_the_references as quantize_fp8

FIRST = [*{case.op: case for case in reversed(CASES)}.values()]
EACH = [*FIRST, *(case for case in every_op.PACKED if case not in FIRST)]
INTERPRETED = [case for case in EACH if "triton" in case.impls]
LAUNCHED = sorted({work.op for work in workloads() if any(row.name == "triton" for row in ak.OPS[work.op].impls)})
PLAIN = ("pack_heads", "unpack_heads")  # their kernel is CUDA C++, which needs a GPU to be there


def test_the_installed_package_is_under_test():
    assert Path(ak.__file__).is_relative_to(sys.prefix), ak.__file__


def test_import_brings_torch_alone():
    imports_torch_alone()


def test_it_works_without_triton():
    works_without_triton()


@pytest.mark.parametrize("package", _versions.TESTED)
def test_the_versions_here_are_those_that_are_declared(package):
    """afn_kernels/_versions.py has the lowest and the newest: a newer one is entered there."""
    here = _versions.number(pytest.importorskip(package).__version__)
    lowest, newest = map(_versions.number, _versions.TESTED[package])
    assert lowest <= here <= newest


@pytest.mark.parametrize("case", EACH, ids=str)
def test_eager_forward_and_backward(case, device):
    for dtype in case.dtypes[:2]:
        check_budget(case, dtype, device, "auto")


@pytest.mark.parametrize("case", EACH, ids=str)
def test_compiled_is_one_graph_for_all_lengths(case, device):
    every_op.test_auto_is_one_graph_with_the_results_of_eager(case, "auto", device)


@pytest.mark.parametrize("case", INTERPRETED, ids=str)
def test_interpreted(case, device):
    every_op.runs(case, "triton", device)
    check_budget(case, case.dtypes[0], device, "triton")


def test_interpreted_quantize_fp8(device):
    reason = next(row for row in ak.explain("quantize_fp8").rows if row.impl == "triton")
    if reason.status == "unavailable":
        pytest.skip(reason.reason)
    quantize_fp8(63, 200, (1, 128), False, device)


def test_qkv_rotary():
    qkv_rotary(8)


@pytest.mark.parametrize("case", [case for case in EACH if case.op not in PLAIN], ids=str)
def test_a_gpu_takes_the_kernel(case, monkeypatch):
    """Fake tensors on "cuda", which no GPU has to be there for."""
    monkeypatch.setattr(_triton, "compile_only", True)
    made = case.make(next((x for x in case.dtypes if x.itemsize == 2), torch.float32), "cpu")
    with FakeTensorMode(), ak.strict():
        inputs = {name: torch.empty(x.shape, dtype=x.dtype, device="cuda") for name, x in made.items()}
        try:
            outs = case.call(inputs, "auto")
        except RuntimeError as error:
            if "CUDA driver" in str(error):
                pytest.skip("fake tensors of this PyTorch ask for a GPU when they are sorted")
            raise
    assert {x.device.type for x in outs} == {"cuda"}


@pytest.fixture(scope="session")
def binaries(tmp_path_factory) -> dict:
    """In a process of its own: kernels imported for the interpreter cannot be compiled."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    out = tmp_path_factory.mktemp("sm90") / "kernels.json"
    command = [sys.executable, "-m", "tests.versions.sm90", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("op", LAUNCHED)
def test_compiled_for_an_h100(op, binaries, record_property):
    """That a kernel spills is noted: of the pinned Triton tests/kernels/test_binaries.py allows none."""
    found = binaries[op]
    assert not isinstance(found, str), found
    assert found, "nothing was launched"
    for name, size in found.items():
        if size:
            record_property("noted", f"{name} spills registers ({size} bytes)")


@pytest.mark.parametrize("name", ["llama", "whisper"])
def test_patch(name):
    """The same logits, loss and gradients, every op replaced."""
    pytest.importorskip("transformers")
    from tests.kernels import test_patch

    test_patch.test_logits_and_every_gradient_stay_within_the_budget(name, torch.float32)


@pytest.mark.parametrize("size", [80, 128])
def test_feature_extractor(size):
    pytest.importorskip("transformers")
    from tests.kernels import test_features

    test_features.test_same_outputs("default", size)
