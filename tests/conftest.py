"""The device and the seed of a run, and which of its tests are numeric."""

import inspect
import os
import random
import types
import zlib
from functools import cache

import numpy as np
import pytest
import torch

from tests import budget


def pytest_configure(config):
    config.addinivalue_line("markers", "numeric: what is computed is held to a budget (tests/budget.py)")
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


def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, pytest.Function) and held_to_a_budget(inspect.unwrap(item.function)):
            item.add_marker("numeric")


@cache
def held_to_a_budget(function: types.FunctionType) -> bool:
    """Whether it, or a function of the tests that it names, calls one of tests/budget.py's checks."""
    return any(map(checks, named(function, set())))


def checks(function: types.FunctionType) -> bool:
    return function.__module__ == budget.__name__ and function.__name__.startswith("assert_within")


def named(function: types.FunctionType, seen: set) -> set[types.FunctionType]:
    """The functions of the tests that its code names, and theirs."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
        for name in code.co_names:
            other = inspect.unwrap(x) if callable(x := function.__globals__.get(name)) else None
            if isinstance(other, types.FunctionType) and other not in seen and other.__module__.startswith("tests."):
                seen.add(other)
                named(other, seen)
    return seen


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))
