"""A wheel built with nvcc and one built without it, each installed where nothing else is, and used."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

import afn_kernels as ak
from tests.house.wheels import ROOT, copy_checkout, requirements

pytestmark = pytest.mark.slow

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import afn_kernels as ak
from afn_kernels import _cuda
assert ak.__file__.startswith(sys.argv[1]), ak.__file__
assert _cuda.sources() == _cuda.PACKAGE, "a wheel reads no checkout"
names = sorted(file.stem for file in (_cuda.PACKAGE / "cuda").glob("*.cu"))
assert "log_mel" in names
binaries = sorted(file.stem for file in _cuda.PACKAGE.glob("*.fatbin"))
assert binaries == (names if sys.argv[2] == "nvcc" else []), binaries
if sys.argv[2] != "nvcc":
    assert _cuda.compiled("log_mel", (9, 0))[:4] == b"\\x7fELF"
assert ak.explain("log_mel", torch.zeros(1, 320)).chosen == sys.argv[3]
assert ak.log_mel(torch.zeros(1, 320)).shape == (1, 128, 2)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A source distribution, unpacked: what a package index would have."""
    checkout, folder = copy_checkout(tmp_path_factory.mktemp("checkout")), tmp_path_factory.mktemp("source")
    pack = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    subprocess.run(pack, cwd=checkout, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


ANOTHER, MARKED = "_binaries/qkv_rotary.fatbin", "_binaries/log_mel.fatbin"


def built_here(folder: Path) -> dict[str, str]:
    """What the checkout has compiled, by digest: a file as if it were of another source, and one that can be told."""
    shutil.copytree(ROOT / "afn_kernels", folder, ignore=shutil.ignore_patterns("*.py"))
    file = folder / "_binaries" / "built.json"
    built = json.loads(file.read_text())
    of = built.setdefault("of", {})  # an older build has none, and all is compiled
    if ANOTHER in of:
        of[ANOTHER] = "another"
        (folder / ANOTHER).write_bytes(b"another")
        (folder / MARKED).write_bytes((folder / MARKED).read_bytes() + b"marked")
    file.write_text(json.dumps(built))
    return of


def test_what_decides_a_digest(tmp_path, monkeypatch):
    """The source and its name, every header, flags of the build and of the environment, and the compilers."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    digest = runpy.run_path(str(ROOT / "setup.py"))["digest"]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy2(ROOT / "CMakeLists.txt", tmp_path)
    one, other = (tmp_path / "csrc" / "cuda" / name for name in ("qkv_rotary.cu", "log_mel.cu"))
    found = [digest([one], tmp_path, "13.0")]
    assert digest([one], tmp_path, "13.0") == found[0]
    found += [digest([other], tmp_path, "13.0"), digest([one], tmp_path, "13.1")]
    found.append(digest([one.rename(one.with_name("renamed.cu"))], tmp_path, "13.0"))
    one = one.with_name("renamed.cu")
    headers = sorted((tmp_path / "csrc" / "include" / "afn").iterdir())
    assert {".cuh", ".h"} == {header.suffix for header in headers}
    for file in (one, *headers, tmp_path / "CMakeLists.txt"):
        file.write_text(file.read_text() + "\n")
        found.append(digest([one], tmp_path, "13.0"))
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    found.append(digest([one], tmp_path, "13.0"))
    assert len(set(found)) == len(found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("compiler", ["nvcc", "none"])
def test_a_wheel(source, compiler, tmp_path):
    """Built from the source distribution; it asks for torch and numpy, and for nothing else unless asked."""
    if compiler == "nvcc" and shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    environment = {**os.environ, "AFN_CACHE": str(tmp_path / "cache"), "AFN_BUILT": str(tmp_path / "built")}
    environment |= {"AFN_NVCC": ""} if compiler == "none" else {}
    known = built_here(tmp_path / "built")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", str(source), "--no-build-isolation", "--no-deps", "-w", str(tmp_path)]
    subprocess.run(build, check=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"afn_kernels-{ak.__version__}-")
    needed = [one for one in requirements(wheel) if "extra ==" not in one]
    assert sorted(re.split(r"\W", one)[0] for one in needed) == ["numpy", "torch"]
    here = tmp_path / "here"
    install = [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(here), str(wheel)]
    subprocess.run(install, check=True, env=environment)
    package = here / "afn_kernels" / "_binaries"
    for kind in ("cuda/*.cu", "include/afn/*.cuh"):  # what test_cuda.py compiles; one of them is enough here
        packed = {file.name: file.read_bytes() for file in package.glob(kind)}
        assert packed == {file.name: file.read_bytes() for file in (ROOT / "csrc").glob(kind)} != {}
    built = json.loads((package / "built.json").read_text())
    missing = built["missing"]
    assert not missing["cpu"] or shutil.which("c++") is None, missing
    assert missing["cuda"] == ("" if compiler == "nvcc" else "nvcc was not found")
    for name, made_of in built["of"].items():
        code = (here / "afn_kernels" / name).read_bytes()
        assert code != b"another", "of another source"
        assert known.get(name) != made_of or code == (tmp_path / "built" / name).read_bytes(), "compiled again"
    chosen = "reference" if missing["cpu"] else "cpu"
    environment.pop("TRITON_INTERPRET", None)
    use = [sys.executable, "-I", "-c", USE, str(here), compiler, chosen]
    done = subprocess.run(use, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
