"""The device and the seed of a run, and which of its tests are numeric."""

import inspect
import os
import random
import types
import zlib

import numpy as np
import pytest
import torch

from tests import budget


def pytest_configure(config):
    config.addinivalue_line("markers", "numeric: what is computed is held to a budget (tests/budget.py)")
    config.addinivalue_line("markers", "slow: processes or whole runs; tests.margins leaves it out")
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**31)
    seed(config.option.seed)


def pytest_report_header(config):
    return f"random inputs: --seed {config.option.seed}"


def seed(number: int) -> None:
    """Of every generator that tests draw from."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  transformers' dither draws from it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # A test's inputs depend on the run's seed and its own name, not on the tests before it.
    seed((item.config.option.seed + zlib.crc32(item.nodeid.encode())) % 2**31)


def pytest_collection_modifyitems(config, items):
    part, parts = map(int, config.getoption("--part").split("/"))
    items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part]
    for item in items:
        if isinstance(item, pytest.Function) and notes_its_margin(inspect.unwrap(item.function), set()):
            item.add_marker("numeric")


def notes_its_margin(function: types.FunctionType, seen: set[types.FunctionType]) -> bool:
    """Whether it, or a function of the tests that it names, calls what notes the use of a budget."""
    seen.add(function)
    codes = [function.__code__]
    for code in codes:
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
    named = [function.__globals__.get(name) for code in codes for name in code.co_names]
    others = [inspect.unwrap(x) for x in named if isinstance(x, types.FunctionType)]
    others = [x for x in others if x.__module__.startswith("tests.") and x not in seen]
    return function is budget.note or any(notes_its_margin(other, seen) for other in others)


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))
