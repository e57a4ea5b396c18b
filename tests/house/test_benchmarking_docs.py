"""The commands of docs/benchmarking.md run as they are shown, with short rounds, and what it says of them is so."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from bench import compare, pictures, report, run
from bench.ops import Workload
from bench.record import Bench
from bench.sm90 import command
from tests.bench.test_run import BENCH

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
LINES = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
]
OWN = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "my_ops.py" in block)
ON_A_GPU = [line for line in LINES if "--device cuda" in line]
MAINS = {"run": run.main, "report": report.main, "compare": compare.main, "pictures": pictures.main}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with my_ops.py, where nothing is compiled and rounds are short."""
    (tmp_path / "my_ops.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark times nothing where that is set
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # bench.run sets them
    monkeypatch.setattr(Bench, "of", classmethod(lambda cls, device, **settings: BENCH))
    torch.compiler.set_stance("force_eager")
    yield tmp_path
    torch.compiler.set_stance("default")


def benched(capfd, line: str) -> tuple[int, str]:
    """The exit status and the output of a line that begins with pytest."""
    words = [{"bench": str(ROOT / "bench")}.get(word, word) for word in shlex.split(line)[1:]]
    plain = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout", "-o", "addopts=", "-W", "ignore"]
    status = pytest.main([*words, *plain])
    return int(status), capfd.readouterr().out


@pytest.mark.slow
def test_the_commands_run(desk, capfd):
    ran = []
    for line in LINES:
        words = shlex.split(line)
        if line in ON_A_GPU or words[0] == "pip" or "bench.sm90" in words:
            continue
        if words[0] == "pytest":
            status, out = benched(capfd, line)
            assert status == 0, out
            ran.append((line, out))
        else:
            assert words[:2] == ["python", "-m"], line
            assert MAINS[words[2].removeprefix("bench.")](words[3:]) in (0, None), line
    tables = "\n".join(out for _, out in ran)
    assert "rms_norm, 8192 x 3584 + residual cut to rows 1024, float32 on cpu, forward" in tables
    assert "rms_norm, 256 x 640, float32 on cpu, forward" in tables, "own shapes are not cut"
    assert "ours: auto took reference (plain PyTorch)" in tables
    assert "yours: my_rms_norm" in tables
    assert "not figures of a GPU" in tables
    compared = next(out for line, out in ran if "--benchmark-compare" in line)
    assert "0001_before" in compared
    text = (desk / "runs/bench/own/ops.md").read_text()
    assert "## Yours against ours" in text
    assert (desk / "runs/bench/own/peers.png").is_file()


def test_a_wrong_op_fails_and_has_no_time(desk, capfd):
    (desk / "my_ops.py").write_text(OWN.replace("* scale *", "* 1.01 * scale *"))
    line = 'pytest bench --also my_ops.py:my_rms_norm=rms_norm --shape rows=8,width=32 -k "my_rms_norm and forward"'
    status, out = benched(capfd, f"{line} --benchmark-min-rounds=3")
    assert status == 1
    assert "exceeds the budget" in out
    assert "yours: my_rms_norm" not in out
    assert "--benchmark-min-rounds has no effect" in out


def test_a_mistake_on_the_command_line_is_one_line(desk, capfd):
    for option, message in (
        ("--shape rowz=4", "no op has all of these sizes"),
        ("--also my_ops.py:other=rms_norm", "has no function other"),
    ):
        assert pytest.main([str(ROOT / "bench" / "test_ops.py"), *shlex.split(option), "-p", "no:cacheprovider"]) == 4
        said = capfd.readouterr()
        assert message in said.out + said.err


def test_what_is_named_exists():
    assert {line.split()[2] for line in LINES if line.startswith("python -m")} == {
        "bench.run",
        "bench.report",
        "bench.sm90",
    }
    assert callable(command.main)
    for module in re.findall(r"`python -m bench\.(\w+)", TEXT):
        assert any((ROOT / "bench" / name).is_file() for name in (f"{module}.py", f"{module}/__main__.py"))
    assert "differs" in {field.name for field in fields(Workload)}
    assert "bench = [" in (ROOT / "pyproject.toml").read_text()
    for line in ON_A_GPU:
        assert line.startswith("pytest bench --device cuda -k ")
