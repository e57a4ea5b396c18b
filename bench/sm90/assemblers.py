"""The same PTX through every ptxas at hand: the compiler chain's last step is where wrong code was published."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Assembler:
    """A ptxas and its version."""

    path: str
    version: str

    @staticmethod
    def at(path: str) -> Assembler:
        """
        Raises:
            ValueError: it does not run, or says no version.
        """
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            return Assembler(path, re.search(r"V([\d.]+)", said)[1])
        except (OSError, subprocess.CalledProcessError, TypeError):
            raise ValueError(f"{path} is no ptxas: expected a program that says its version") from None

    def assemble(self, ptx: str, architecture: str = "sm_90a") -> tuple[int, int]:
        """Registers, and bytes spilled.

        Raises:
            ValueError: what it says of the PTX.
        """
        return _assembled(self, ptx, architecture)


@lru_cache(maxsize=256)
def _assembled(one: Assembler, ptx: str, architecture: str) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [one.path, "-v", f"--gpu-name={architecture}", file.name, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr + done.stdout
    found = re.search(r"Used (\d+) registers", said)
    if done.returncode or not found:
        raise ValueError(f"ptxas {one.version}: {said.strip()[:500]}")
    return int(found[1]), sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", said)))


@lru_cache
def own() -> Assembler:
    """The one that Triton brings and uses."""
    from triton import knobs

    return Assembler.at(knobs.nvidia.ptxas.path)


def others(paths: list[str]) -> list[Assembler]:
    """Those at ``paths``, in AFN_PTXAS (separated like PATH) and the one on PATH, each version once."""
    asked = [*paths, *filter(None, os.environ.get("AFN_PTXAS", "").split(os.pathsep))]
    found = {own().version: None}
    for path in [*asked, *filter(None, [shutil.which("ptxas")])]:
        one = Assembler.at(str(Path(path)))
        found.setdefault(one.version, one)
    return [one for one in found.values() if one is not None]


def differences(ptx: str, assemblers: list[Assembler]) -> dict[str, tuple[int, int]]:
    """(registers, bytes spilled) of Triton's assembler under its version, and of those that differ from it."""
    first = own()
    mine = first.assemble(ptx)
    found = {one.version: one.assemble(ptx) for one in assemblers}
    return {first.version: mine} | {version: use for version, use in found.items() if use != mine}
