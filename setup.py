"""Packages and the optional compiled extension. Metadata is in pyproject.toml, but for what depends on ``URL``.

    pip install -e . --no-build-isolation --no-deps

The extension afn_kernels._cpu is built by CMake with pybind11 (and ninja where it is found), and the CUDA kernels where
nvcc is; their sources are shipped too, for NVRTC. Without a compiler, CMake or pybind11 the install succeeds all the
same, with one warning; what was built, and why something was not, is kept in afn_kernels/_binaries/built.json, and said
at the first call that misses it and by ``afn doctor``. AFN_NVCC= (empty) builds as if there were no nvcc.

Compilers take most of the time, so what they made in an earlier build is taken where sources, headers, flags and
compilers are the same: from where this build is going to, and from AFN_BUILT=FOLDER, the afn_kernels of another one.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

URL = ""  # of the repository; what package indexes link to, and README's links there, are made of it

ROOT = Path(__file__).resolve().parent
PACKAGES = [*find_packages(include=["afn_kernels*", "afn_model*"]), "afn_distributed"]
SETTINGS = ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_GENERATOR", "CUDA_HOME")  # what CMake reads once and then remembers
FLAGS = (*SETTINGS, "CPATH", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")  # and what compilers read


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


def digest(sources: list[Path], root: Path, *said: str) -> str:
    """Of all that decides what becomes of sources: they, all headers, flags, and what compilers say of themselves."""
    files = [root / "CMakeLists.txt", *sorted((root / "csrc" / "include").rglob("*.*h")), *sources]
    said += tuple(os.environ.get(name, "") for name in FLAGS)
    parts = [repr(said).encode(), *(x for file in files for x in (file.name.encode(), file.read_bytes()))]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def built_before(package: Path) -> dict[str, bytes]:
    """What was compiled in a folder ``afn_kernels``, by its digest."""
    found, file = {}, package / "_binaries" / "built.json"
    with suppress(OSError, ValueError, LookupError):  # an older build, an interrupted one, or none
        for name, made_of in json.loads(file.read_text(encoding="utf-8"))["of"].items():
            with suppress(OSError):
                found[made_of] = (package / name).read_bytes()
    return found


def version(build: Path, tool: str) -> str:
    """What a compiler that CMake has found says of itself."""
    file = build / "CMakeCache.txt"
    found = re.search(rf"^{tool}:\w+=(.+)$", file.read_text(encoding="utf-8") if file.is_file() else "", re.M)
    return subprocess.run([found[1], "--version"], stdout=subprocess.PIPE, text=True).stdout if found else ""


class BuildFresh(build):
    """Begins with an empty folder: what an earlier build left there would be packed."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Builds what is compiled, with CMake; a machine that cannot build it gets a warning instead of a failure."""

    def run(self):
        (extension,) = self.extensions
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        binaries = target.parent / "_binaries"
        self.before, self.made_of = built_before(target.parent), {}
        if os.environ.get("AFN_BUILT"):
            self.before |= built_before(Path(os.environ["AFN_BUILT"]))
        shutil.rmtree(binaries, ignore_errors=True)
        shutil.copytree(ROOT / "csrc" / "cuda", binaries / "cuda")
        shutil.copytree(ROOT / "csrc" / "include", binaries / "include", ignore=shutil.ignore_patterns("*.h"))
        missing = {}
        for what, build_it in (("cpu", self.build_with_cmake), ("cuda", self.build_cuda)):
            try:
                missing[what] = build_it(target)
            except (CMakeFailed, OSError) as reason:
                missing[what] = str(reason)
                name = what.upper()
                print(f"warning: afn_kernels is installed without compiled {name} kernels: {reason}", file=sys.stderr)
        if missing["cpu"]:
            target.unlink(missing_ok=True)  # in a checkout: of older sources
        built = {"missing": missing, "of": self.made_of}
        (binaries / "built.json").write_text(json.dumps(built, indent=2) + "\n", encoding="utf-8")

    def build_cuda(self, target: Path) -> str:
        """Machine code of csrc/cuda, where nvcc is; else why not: NVRTC makes it at first use."""
        folders = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda")
        here = find_tool("nvcc") or any(Path(folder, "bin", "nvcc").is_file() for folder in folders)
        if not here or not os.environ.get("AFN_NVCC", "nvcc"):
            print("no nvcc: CUDA kernels will be compiled at their first use")
            return "nvcc was not found"
        build = Path(self.build_temp).resolve() / "cpu"
        nvcc = version(build, "AFN_NVCC")
        sources = {f"_binaries/{file.stem}.fatbin": file for file in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))}
        made_of = {name: digest([file], ROOT, nvcc) for name, file in sources.items()}
        todo = [f"cuda_{file.stem}" for name, file in sources.items() if made_of[name] not in self.before]
        if todo:
            run_cmake([find_tool("cmake") or "cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1),
                       "--target", *todo])  # fmt: skip
        for name in sources:
            kept = self.before.get(made_of[name])
            code = (build / "cuda" / Path(name).name).read_bytes() if kept is None else kept
            (target.parent / name).write_bytes(code)
        self.made_of |= made_of
        return ""

    def build_with_cmake(self, target: Path) -> str:
        """The CPU kernels; a folder that was configured for another compiler is not built on."""
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise CMakeFailed("cmake was not found")
        try:
            import pybind11
        except ImportError:
            raise CMakeFailed("pybind11 was not found") from None
        build = Path(self.build_temp).resolve() / "cpu"
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DPYBIND11_FINDPYTHON=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'lib'}",
        ]  # fmt: skip
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        settings = json.dumps([configure, find_tool("nvcc"), {name: os.environ.get(name) for name in SETTINGS}])
        kept = build / "settings.json"
        if not kept.is_file() or kept.read_text(encoding="utf-8") != settings:
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        run_cmake(configure)
        kept.write_text(settings, encoding="utf-8")
        said = (version(build, "CMAKE_CXX_COMPILER"), sys.version, target.name, pybind11.__version__)
        made_of = digest(sorted((ROOT / "csrc" / "cpu").glob("*.*")), ROOT, *said)
        code = self.before.get(made_of)
        if code is None:
            run_cmake([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)])
            (built,) = (build / "lib").glob("_cpu*")
            code = built.read_bytes()
        fresh = target.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(code)
        fresh.chmod(0o755)
        os.replace(fresh, target)  # a process that has the old one mapped keeps it whole
        self.made_of[target.name] = made_of
        return ""


def at_version(kind: str) -> str:
    """Where the repository shows ("blob") or has ("raw") the files of this version."""
    text = (ROOT / "afn_kernels" / "__init__.py").read_text(encoding="utf-8")
    return f"{URL}/{kind}/v{re.search(r'^__version__ = .(.*).$', text, re.M).group(1)}"


def readme() -> str:
    """README.md, whose links lead somewhere from a package index too, once the repository has an address."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    link = r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)"
    return re.sub(link, lambda m: f"{m[1]}{m[2]}{at_version('raw' if m[1] else 'blob')}/", text) if URL else text


def project_urls() -> dict[str, str]:
    if not URL:
        return {}
    documentation = f"{at_version('blob')}/docs/using-the-kernels.md"
    changelog = f"{at_version('blob')}/CHANGELOG.md"
    return {"Source": URL, "Documentation": documentation, "Changelog": changelog, "Issues": f"{URL}/issues"}


setup(
    packages=PACKAGES,
    package_dir={"afn_distributed": "distributed"},
    package_data={
        "afn_kernels": ["py.typed"],
        "afn_distributed": ["py.typed"],
        "afn_model": ["py.typed"],
        "afn_model.curate": ["plans/*.yaml", "prompts/*"],
        "afn_model.eval": ["benchmarks/*.yaml"],
        "afn_model.prompt": ["*.jinja"],
        "afn_model.serve": ["page/*", "page/vendor/*"],
        "afn_model.train": ["curricula/*.yaml", "layouts/*.yaml"],
    },
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls=project_urls(),
    ext_modules=[Extension("afn_kernels._cpu", sources=[], optional=True)],
    cmdclass={"build": BuildFresh, "build_ext": BuildNative},
)
