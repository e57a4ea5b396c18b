"""Packages and the optional compiled extension. Metadata is in pyproject.toml.

    pip install -e . --no-build-isolation --no-deps

The extension afn_kernels._cpu is built by CMake with pybind11 (and ninja where it is found), and the CUDA kernels where
nvcc is; their sources are shipped too, for NVRTC. Without a compiler, CMake or pybind11 the install succeeds all the
same, with one warning: every op then has its other implementations. AFN_NVCC= (empty) builds as if there were no nvcc.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGES = [*find_packages(include=["afn_kernels*", "afn_model*"]), "afn_distributed"]


class CMakeFailed(Exception):
    """Why the extension could not be built, in one line."""


def find_tool(name: str) -> str | None:
    """A program beside this Python (a virtual environment that is not activated) or on the path."""
    return shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)


def run_cmake(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if "error" in line.lower()), 0)
        raise CMakeFailed(f"cmake failed: {' '.join(lines[start : start + 3])}")


class BuildNative(build_ext):
    """Builds what is compiled, with CMake; a machine that cannot build it gets a warning instead of a failure."""

    def run(self):
        (extension,) = self.extensions
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        binaries = target.parent / "_binaries"
        shutil.rmtree(binaries, ignore_errors=True)
        shutil.copytree(ROOT / "csrc" / "cuda", binaries / "cuda")
        shutil.copytree(ROOT / "csrc" / "include", binaries / "include", ignore=shutil.ignore_patterns("*.h"))
        for what, build in (("CPU", self.build_with_cmake), ("CUDA", self.build_cuda)):
            try:
                build(target)
            except (CMakeFailed, OSError) as reason:
                print(f"warning: afn_kernels is installed without compiled {what} kernels: {reason}", file=sys.stderr)

    def build_cuda(self, target: Path) -> None:
        """Machine code of csrc/cuda, where nvcc is; without it NVRTC makes it at first use."""
        folders = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda")
        here = find_tool("nvcc") or any(Path(folder, "bin", "nvcc").is_file() for folder in folders)
        if not here or not os.environ.get("AFN_NVCC", "nvcc"):
            print("no nvcc: CUDA kernels will be compiled at their first use")
            return
        build = Path(self.build_temp).resolve() / "cpu"
        run_cmake([find_tool("cmake") or "cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1),
                   "--target", "cuda_kernels"])  # fmt: skip
        for file in (build / "cuda").glob("*.fatbin"):
            shutil.copy2(file, target.parent / "_binaries")

    def build_with_cmake(self, target: Path) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise CMakeFailed("cmake was not found")
        try:
            import pybind11
        except ImportError:
            raise CMakeFailed("pybind11 was not found") from None
        build = Path(self.build_temp).resolve() / "cpu"
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DPYBIND11_FINDPYTHON=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'lib'}",
        ]  # fmt: skip
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        run_cmake(configure)
        run_cmake([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)])
        (built,) = (build / "lib").glob("_cpu*")
        fresh = target.with_suffix(f".{os.getpid()}")
        shutil.copy2(built, fresh)
        os.replace(fresh, target)  # a process that has the old one mapped keeps it whole


setup(
    packages=PACKAGES,
    package_dir={"afn_distributed": "distributed"},
    package_data={
        "afn_kernels": ["py.typed"],
        "afn_distributed": ["py.typed"],
        "afn_model": ["py.typed"],
        "afn_model.prompt": ["*.jinja"],
        "afn_model.train": ["curricula/*.yaml", "layouts/*.yaml"],
    },
    ext_modules=[Extension("afn_kernels._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
