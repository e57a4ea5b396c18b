"""Installing without a compiler, beside another torch, and what metadata says. The compiled part is an empty module."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.house.wheels import copy_checkout, requirements

pytestmark = pytest.mark.slow

EMPTY = """
cmake_minimum_required(VERSION 3.18)
project(afn_kernels LANGUAGES CXX)
file(WRITE ${CMAKE_BINARY_DIR}/empty.cpp "")
add_library(_cpu MODULE ${CMAKE_BINARY_DIR}/empty.cpp)
set_target_properties(_cpu PROPERTIES PREFIX "")
"""
USE = """
import warnings, torch
import afn_kernels as ak
with warnings.catch_warnings(record=True) as said:
    assert ak.log_mel(torch.zeros(1, 320)).shape == (1, 128, 2)
(line,) = [str(warning.message) for warning in said]
print(line)
from afn_model.cli.doctor import examine
(fix,) = [item["fix"] for item in examine()["missing"] if item["what"] == "compiled extension"]
print(fix)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    (folder / "CMakeLists.txt").write_text(EMPTY)
    return folder


def build(checkout: Path, out: Path, **environment: str) -> Path:
    """A wheel, built in the checkout's own folder ``build``, as pip does."""
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(out)]
    settings = {**os.environ, "AFN_NVCC": "", **environment}
    subprocess.run(command, cwd=checkout, env=settings, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def uncompiled(checkout, tmp_path_factory) -> Path:
    """A wheel built with a compiler that fails, in a folder where another one did not."""
    (checkout / "build").mkdir()
    first = build(checkout, tmp_path_factory.mktemp("first"))
    assert any(name.startswith("afn_kernels/_cpu.") for name in names(first))
    (stale,) = (checkout / "build").glob("lib*/afn_kernels")
    (stale / "removed.py").touch()
    return build(checkout, tmp_path_factory.mktemp("second"), CXX="/bin/false")


def test_without_a_compiler(uncompiled, tmp_path):
    """The install succeeds; what is missing is known to it, and said at the first call and by ``afn doctor``."""
    assert not any(name.startswith("afn_kernels/_cpu.") for name in names(uncompiled))
    assert "afn_kernels/removed.py" not in names(uncompiled)
    with zipfile.ZipFile(uncompiled) as archive:
        missing = json.loads(archive.read("afn_kernels/_binaries/built.json"))["missing"]
    assert missing["cpu"].startswith("cmake failed: ")
    assert "/bin/false" in missing["cpu"]
    assert missing["cuda"] == "nvcc was not found"
    venv.create(tmp_path / "environment", symlinks=True)
    there = pip_install(tmp_path / "environment", "--no-deps", uncompiled)
    # Without .pth files: an editable install's finder would lend the package its checkout's extension.
    code = f"import sys; sys.path[:0] = [{str(there)!r}, {sysconfig.get_path('purelib')!r}]\n{USE}"
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    use = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(use, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warning, fix = done.stdout.splitlines()
    assert warning.startswith("log_mel runs several times slower than it could")
    assert missing["cpu"] in warning
    assert fix in warning
    assert fix.startswith("pip install --force-reinstall --no-deps --no-cache-dir --no-binary afn-kernels ")


def pip_install(environment: Path, *arguments: Path | str) -> Path:
    """With no index, settings or pip of the environment's own; returns its site-packages."""
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "--disable-pip-version-check", "-q"]
    arguments = ("--no-index", "--no-compile", *arguments)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    settings["PIP_CONFIG_FILE"] = os.devnull
    subprocess.run([*pip, "install", *arguments], check=True, capture_output=True, env=settings)
    (packages,) = environment.glob("lib/python*/site-packages")
    return packages


@pytest.mark.parametrize(("present", "stays"), [("2.8.0", True), ("2.7.1", False)])
def test_an_older_torch_stays(uncompiled, tmp_path, present, stays):
    """pip resolves our requirements where a newer torch is on offer; a torch that is too old shows that pip would."""
    for name, numbers in {"torch": ("2.7.1", "2.8.0", "99.0"), "numpy": ("1.26.4",), "torchaudio": ("99.0",)}.items():
        for number in numbers:
            stand_in(tmp_path / "offered", name, number, f"torch=={number}" if name == "torchaudio" else "")
    environment, offered = tmp_path / "environment", ["--find-links", tmp_path / "offered"]
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    shutil.unpack_archive(tmp_path / "offered" / f"torch-{present}-py3-none-any.whl", packages, "zip")
    before = {file: file.stat().st_mtime_ns for file in packages.glob("torch*/*")}
    assert any(file.parent.name == f"torch-{present}.dist-info" for file in before)
    pip_install(environment, *offered, uncompiled)
    assert (packages / "afn_kernels").is_dir()
    assert (packages / "numpy-1.26.4.dist-info").is_dir()
    assert not list(packages.glob("torchaudio*"))
    assert ({file: file.stat().st_mtime_ns for file in packages.glob("torch*/*")} == before) == stays


def stand_in(folder: Path, name: str, number: str, requirement: str = "") -> None:
    """A wheel of this name and version with next to nothing in it."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{number}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
    metadata += f"Requires-Dist: {requirement}\n" if requirement else ""
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as archive:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, content)


@pytest.mark.parametrize("url", ["", "https://example.org/afn"])
def test_one_line_gives_the_package_its_links(checkout, tmp_path, url):
    setup = checkout / "setup.py"
    text = setup.read_text()
    assert text.count('\nURL = ""') == 1, "the owner's line"
    folder = tmp_path / "source"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "csrc"))
    (folder / "setup.py").write_text(text.replace('\nURL = ""', f'\nURL = "{url}"'))
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    metadata = (tmp_path / "afn_kernels.egg-info" / "PKG-INFO").read_text(encoding="utf-8")
    version = next(line for line in metadata.splitlines() if line.startswith("Version: ")).removeprefix("Version: ")
    assert ("Project-URL: Source, https://example.org/afn\n" in metadata) == bool(url)
    assert f"({url}/blob/v{version}/docs/using-the-kernels.md)" in metadata or not url
    assert f"({url}/raw/v{version}/docs/page.png)" in metadata or not url
    assert ("](docs/" in metadata) == (not url)
    assert "Author: The afn-kernels authors" in metadata


def test_the_kernels_need_torch_and_numpy_alone(uncompiled):
    assert sorted(line for line in requirements(uncompiled) if "extra" not in line) == ["numpy>=1.24", "torch>=2.8"]
