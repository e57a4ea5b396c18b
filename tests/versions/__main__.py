"""Installs the package from a wheel in clean environments and runs smoke.py in each, on a CPU.

    python -m tests.versions [--sets lowest pinned newest] [--pythons 3.12] [--keep]

lowest: what pyproject.toml asks for at least, on the oldest Python here. pinned: constraints.txt, on the Python that
runs this. newest: what pip finds with no pins, on the newest Python here. Each environment takes 5 GB and some minutes,
and is removed afterwards. pip's own configuration holds: where that caps a version, PIP_CONFIG_FILE=/dev/null lifts it.
Results go to bench/results/cpu/versions.jsonl and into docs/versions.md, in place of those of the same set and Python.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from tests.versions.results import PACKAGES, PYTHONS, RESULTS, ROOT, read, write

SETS = ("lowest", "pinned", "newest")
SMOKE = "tests/versions/smoke.py"
SUITE = ("tests/", "bench/", "conftest.py")
OLDEST_NUMPY = {"3.12": "1.26.0", "3.13": "2.1.0", "3.14": "2.3.2"}  # with a wheel for this Python
LIMIT = 1800  # seconds for a step


def pythons() -> dict[str, str]:
    """The Pythons of this machine that run, {"3.12": path}: on the path, or of pyenv."""
    found = {}
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in PYTHONS:
        paths = [sys.executable, shutil.which(f"python{version}")]
        paths += sorted(map(str, home.glob(f"versions/{version}.*/bin/python")))
        for path in filter(None, paths):
            ask = [path, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() == version:
                found.setdefault(version, path)
    return found


def bounds() -> dict[str, str]:
    """The lowest versions that pyproject.toml declares of what the kernels, patch and the feature extractor need."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {name: re.search(rf'"{name}>=([\d.]+)"', text)[1] for name in PACKAGES if name != "triton"}


def requirements(which: str, python: str) -> list[str]:
    """pip's arguments beside the wheel."""
    if which == "lowest":
        least = bounds() | ({"numpy": OLDEST_NUMPY[python]} if python in OLDEST_NUMPY else {})
        return [f"{name}=={version}" for name, version in least.items()]
    return ["-c", str(ROOT / "constraints.txt")] if which == "pinned" else []


def copied(folder: Path, parts: tuple[str, ...] = ("",)) -> Path:
    """What is committed or will be, of the checkout: no build of it gets into the wheel or beside the tests."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in listed:
        if name.startswith(parts) and "/results/" not in name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of every command: nothing of this checkout, caches of its own, no GPU and no compiler of CUDA."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    caches = {name: str(folder / name) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "AFN_CACHE")}
    return {**kept, **caches, "CUDA_VISIBLE_DEVICES": "", "AFN_NVCC": ""}


class StepFailed(Exception):
    """Why an environment could not be made or its suite not be started, in one line."""


def run(command: list[str], cwd: Path, ok: tuple[int, ...] = (0,)) -> None:
    """Runs a step in an environment of its own; ``ok`` are the exit codes that are not a failure."""
    print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{command[-1]} took more than {LIMIT} s") from None
    if done.returncode not in ok:
        lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        said = [line for line in lines if line.lower().startswith("error")]
        raise StepFailed((said or lines or [f"exit code {done.returncode}"])[-1].replace(str(cwd), "."))


@functools.cache
def wheel(version: str, path: str, folder: Path) -> Path:
    """Built as a stranger would, in isolation, for one Python."""
    home = folder / f"build-{version}"
    source, out = copied(home / "source"), home / "wheel"
    run([path, "-m", "venv", str(home / "venv")], home)
    run([str(home / "venv/bin/python"), "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)], home)
    (found,) = out.glob("*.whl")
    return found


def outcomes(report: Path) -> tuple[Counter, list[dict]]:
    """Counts of a JUnit report, and the test, outcome and reason of whatever did not pass or has a note."""
    counts, reasons = Counter(), []
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        for note in case.iterfind("properties/property"):
            reasons.append({"test": case.get("name"), "outcome": "noted", "reason": note.get("value")})
        outcome = "passed" if bad is None else {"skipped": "skipped"}.get(bad.tag, "failed")
        counts[outcome] += 1
        if bad is not None:
            why = " ".join((bad.get("message") or bad.text or "").split())[:300]
            reasons.append({"test": case.get("name"), "outcome": outcome, "reason": why})
    return counts, reasons


def installed(interpreter: str) -> tuple[str, dict[str, str]]:
    """The Python of an environment, and the versions of what is installed in it."""
    ask = "import importlib.metadata, json, platform; found = importlib.metadata.distributions(); "
    ask += "print(json.dumps([platform.python_version(), {one.name.lower(): one.version for one in found}]))"
    return json.loads(subprocess.run([interpreter, "-c", ask], capture_output=True, text=True, check=True).stdout)


def tried(which: str, python: str, path: str, folder: Path, keep: bool) -> dict:
    """Makes an environment, runs the suite in it, and says what happened."""
    start, home = time.monotonic(), folder / f"{which}-{python}"
    suite, interpreter = copied(home / "suite", SUITE), str(home / "bin/python")
    report = suite / "report.xml"
    pytest = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={suite}"]
    pytest += [f"--junitxml={report}", SMOKE]
    install = [interpreter, "-m", "pip", "install", "-q", "--no-compile", "--only-binary", "numpy,torch,transformers"]
    try:
        run([path, "-m", "venv", str(home)], suite)
        run([*install, f"{wheel(python, path, folder)}[transformers]", *requirements(which, python), "pytest"], suite)
        run(pytest, suite, ok=(0, 1))
        counts, reasons = outcomes(report)
    except StepFailed as error:
        why = {"test": "installing and starting", "outcome": "failed", "reason": str(error)[:300]}
        counts, reasons = Counter(failed=1), [why]
    full, versions = installed(interpreter)
    if not keep:
        shutil.rmtree(home)
    return {
        "set": which,
        "python": full,
        "versions": {name: versions.get(name) for name in PACKAGES},
        **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "reasons": reasons,
        "seconds": round(time.monotonic() - start),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def place(row: dict) -> tuple[int, int]:
    """Of a row in the results: by set, then by Python."""
    return SETS.index(row["set"]), PYTHONS.index(row["python"].rpartition(".")[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--pythons", nargs="+", choices=PYTHONS, help="instead of each set's own")
    parser.add_argument("--keep", action="store_true", help="leave the environments in the temporary folder")
    args = parser.parse_args()
    here = pythons()
    own = {"lowest": next(iter(here)), "pinned": f"{sys.version_info[0]}.{sys.version_info[1]}", "newest": [*here][-1]}
    folder = Path(tempfile.mkdtemp(prefix="versions-"))
    failed = 0
    for which in args.sets:
        for python in args.pythons or [own[which]]:
            if python not in here:
                raise SystemExit(f"no Python {python} on this machine; there are {', '.join(here)}")
            row = tried(which, python, here[python], folder, args.keep)
            print(json.dumps(row, indent=1), flush=True)
            failed += row["failed"]
            others = [x for x in (read() if RESULTS.exists() else []) if place(x) != place(row)]
            write(sorted([*others, row], key=place))
    if not args.keep:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
