"""Options of ``pytest bench``, and what is said about those of pytest-benchmark that do nothing here."""

import importlib.util

import pytest

WITHOUT_EFFECT = {
    "--benchmark-min-rounds": "use --rounds",
    "--benchmark-min-time": "use --budget",
    "--benchmark-max-time": "use --budget",
    "--benchmark-warmup": "the first round is never counted",
    "--benchmark-warmup-iterations": "the first round is never counted",
    "--benchmark-calibration-precision": "use --rounds",
    "--benchmark-precision": "use --rounds",
    "--benchmark-confidence": "use --rounds",
    "--benchmark-timer": "a GPU's events or perf_counter are the clock",
    "--benchmark-disable-gc": "Python's collector stays as it is",
    "--benchmark-cprofile": "profile the call itself",
}


def pytest_addoption(parser):
    group = parser.getgroup("ops", "benchmarks of ops (docs/benchmarking.md)")
    group.addoption("--shape", action="append", default=[], help="own sizes: rows=4096,width=5120; may be repeated")
    group.addoption(
        "--also", action="append", default=[], metavar="FILE.py:FUNCTION=OP", help="own op; may be repeated"
    )
    group.addoption("--rounds", type=int, default=20, help="samples of each implementation")
    group.addoption("--budget", type=float, help="seconds for the rounds of one workload and pass: 4 on a GPU, else 1")


def pytest_configure(config):
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise pytest.UsageError("pytest bench needs pytest-benchmark: pip install 'afn-kernels[bench]'")
    if config.getoption("--device") == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: PyTorch sees no CUDA GPU here")

    shapes, also = config.getoption("--shape"), config.getoption("--also")
    if shapes or also:
        from bench.run import chosen

        try:
            chosen("cpu", shapes=shapes, also=also)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None


def without_effect(arguments: list[str]) -> list[str]:
    """A line for every given option of pytest-benchmark that changes nothing."""
    given = list(dict.fromkeys(x.partition("=")[0] for x in arguments))
    return [
        f"{name} has no effect on ops, whose samples are taken in turns and replayed: {WITHOUT_EFFECT[name]}"
        for name in given
        if name in WITHOUT_EFFECT
    ]


def pytest_terminal_summary(terminalreporter, config):
    for line in without_effect(list(config.invocation_params.args)):
        terminalreporter.write_line(line, yellow=True)
    if config.getoption("--device") == "cpu":
        terminalreporter.write_line("Ops ran on a CPU, in float32 and cut where it says so: not figures of a GPU.")
