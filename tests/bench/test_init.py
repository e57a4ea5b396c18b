"""Which afn_kernels is measured where one is installed and another lies in the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import hidden_install

ROOT = Path(__file__).parents[2]


@pytest.fixture
def places(tmp_path) -> list[str]:
    """A checkout and an installed package; the extensions are empty files."""
    for name in ("checkout", "installed"):
        (tmp_path / name / "afn_kernels").mkdir(parents=True)
        (tmp_path / name / "afn_kernels" / "__init__.py").touch()
    return [str(tmp_path / "checkout"), str(tmp_path / "installed"), str(tmp_path / "nothing")]


def compiled(place: str) -> None:
    (Path(place) / "afn_kernels" / "_cpu.cpython-310-x86_64-linux-gnu.so").touch()


def test_a_checkout_that_hides_the_compiled_one(places):
    checkout, installed, nothing = places
    assert hidden_install(places) == "", "neither is compiled: the references are all there is"
    compiled(installed)
    assert hidden_install([installed, checkout]) == hidden_install([checkout]) == hidden_install([nothing]) == ""
    line = hidden_install([nothing, checkout, installed])
    assert line.startswith(f"{checkout}/afn_kernels is imported, which is not compiled")
    assert f"the installed {installed}/afn_kernels" in line
    assert line.endswith(f": pip install -e {checkout}")
    assert "\n" not in line
    compiled(checkout)
    assert hidden_install(places) == ""


@pytest.mark.parametrize("command", [["-m", "bench", "log_mel"], ["-m", "pytest", "-p", "no:cacheprovider", "bench"]])
def test_nothing_is_measured_then(places, command):
    checkout, installed, _ = places
    compiled(installed)
    shutil.copytree(ROOT / "bench", Path(checkout) / "bench", ignore=shutil.ignore_patterns("results", "__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, checkout)
    code = f"import runpy, sys; sys.path.insert(1, {installed!r}); sys.argv = {command[1:]}; "
    code += f"runpy.run_module({command[1]!r}, run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"bench: {hidden_install(places)}\n"
    assert done.stdout == ""
