"""Assemblers that are asked beside Triton's."""

import stat

import pytest

from bench.sm90 import assemblers
from bench.sm90.assemblers import Assembler

PTX = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() { ret; }\n"


def stand_in(folder, version: str, registers: int, spilled: int = 0) -> str:
    """A program that answers like ptxas."""
    file = folder / f"ptxas-{version}"
    said = f"ptxas info : Used {registers} registers; {spilled} bytes spill stores, {spilled} bytes spill loads"
    file.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "release 1, V{version}"; else echo "{said}" >&2; fi\n'
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_versions_and_what_differs(tmp_path, monkeypatch):
    first = Assembler.at(stand_in(tmp_path, "1.0", 40))
    monkeypatch.setattr(assemblers, "own", lambda: first)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("AFN_PTXAS", stand_in(tmp_path, "2.0", 40))
    found = assemblers.others([stand_in(tmp_path, "3.0", 44, 8), first.path])
    assert [one.version for one in found] == ["3.0", "2.0"], "each version once, Triton's not again"
    assert assemblers.differences(PTX, found) == {"1.0": (40, 0), "3.0": (44, 16)}


def test_what_is_no_assembler(tmp_path):
    with pytest.raises(ValueError, match="is no ptxas"):
        Assembler.at(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="is no ptxas"):
        Assembler.at("/bin/true")


def test_the_one_that_triton_brings():
    pytest.importorskip("triton")
    registers, spilled = assemblers.own().assemble(PTX)
    assert registers > 0
    assert spilled == 0
    with pytest.raises(ValueError, match="ptxas"):
        assemblers.own().assemble(PTX.replace("ret;", "nonsense;"))
