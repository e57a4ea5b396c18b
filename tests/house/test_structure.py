"""The house: floors, the shape of an op's room, and what csrc may include."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import afn_kernels as ak

ROOT = Path(__file__).parents[2]
OPS = sorted({module.name for module in pkgutil.iter_modules(ak.__path__) if module.ispkg} - {"nn", "patch", "verify"})
NOT_OPS = {
    "LogMelStream",
    "MelConfig",
    "check",
    "explain",
    "pad",
    "patch",
    "prefer",
    "report",
    "strict",
    "unpad",
    "verify",
}
PUBLIC = sorted(set(ak.__all__) - NOT_OPS)


def test_a_room_only_calls_rooms_on_floors_below():
    pytest.importorskip("importlinter", reason="import-linter is a test dependency")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_floor_calls_the_measurements_or_the_tests():
    for folder in ("afn_kernels", "afn_model", "distributed"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) (bench|tests)\b", file.read_text(), re.M), file


def test_text_files_of_the_model_are_whole_or_not_there():
    for file in (ROOT / "afn_model").rglob("*.py"):
        if file.name != "files.py":
            assert ".write_text(" not in file.read_text(), f"{file}: afn_model.files.write_text writes atomically"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_a_reference_and_a_public_face(op):
    importlib.import_module(f"afn_kernels.{op}.reference")
    assert ak.OPS[op].impls[-1].name == "reference", "the reference is what runs when nothing else can"


@pytest.mark.parametrize("op", OPS)
def test_implementations_of_an_op_do_not_import_each_other(op):
    folder = ROOT / "afn_kernels" / op
    names = {impl.target.partition(":")[0].rpartition(".")[2] for impl in ak.OPS[op].impls}
    for name in names:
        source = (folder / f"{name}.py").read_text()
        for other in names - {name}:
            assert f"afn_kernels.{op}.{other}" not in source
            assert f"from .{other}" not in source


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_op_says_what_it_computes(name):
    text = inspect.getdoc(getattr(ak, name))
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, section
    assert "=" in text.split("Args:")[0] or "→" in text.split("Args:")[0], "the formula comes first"
    assert "impl" in inspect.signature(getattr(ak, name)).parameters


def test_explain_names_every_implementation():
    for op, table in ak.OPS.items():
        explanation = ak.explain(op)
        assert [row.impl for row in explanation.rows] == [impl.name for impl in table.impls]
        assert explanation.chosen is not None
        assert all(row.reason for row in explanation.rows), op
        assert explanation.chosen in str(explanation)
    with pytest.raises(ValueError, match="no op 'fft'"):
        ak.explain("fft")


def test_no_two_classes_of_the_kernels_share_a_name():
    names = [
        name for f in (ROOT / "afn_kernels").rglob("*.py") for name in re.findall(r"^class (\w+)", f.read_text(), re.M)
    ]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_csrc_includes_no_torch_header():
    for file in (ROOT / "csrc").rglob("*"):
        if file.is_file():
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", file.read_text()), file
