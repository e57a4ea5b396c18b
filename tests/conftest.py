"""What all tests share: the device, the seed of their inputs, and a process that none of them may change."""

import contextlib
import functools
import gc
import inspect
import os
import random
import types
import zlib

import numpy as np
import pytest
import torch

from tests import budget
from tests.long import function, listed


def pytest_configure(config):
    config.addinivalue_line("markers", "long: of tests/long.txt; left out of make test-fast")
    config.addinivalue_line("markers", "numeric: what is computed is held to a budget (tests/budget.py)")
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported
    os.environ.setdefault("AFN_VERDICTS", "0")  # what somebody has measured here must not choose in tests
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**31)
    seed(config.option.seed)
    with contextlib.suppress(ImportError):  # a machine with a GPU may not have it
        import hypothesis

        # How long an example takes says how busy the machine is.
        hypothesis.settings.register_profile("suite", deadline=None)
        hypothesis.settings.load_profile("suite")


def pytest_report_header(config):
    return f"random inputs: --seed {config.option.seed}"


def seed(number: int) -> None:
    """Of every generator that tests draw from."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  transformers' dither draws from it


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays: Python's search for garbage leaves it out, now and in every test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # A test's inputs depend on the run's seed and its own name, not on the tests before it.
    seed((item.config.option.seed + zlib.crc32(item.nodeid.encode())) % 2**31)


def pytest_collection_modifyitems(items):
    long = listed()
    for item in items:
        if function(item.nodeid) in long:
            item.add_marker("long")
        if isinstance(item, pytest.Function) and notes_its_margin(inspect.unwrap(item.function)):
            item.add_marker("numeric")


@functools.cache
def notes_its_margin(function: types.FunctionType) -> bool:
    """Whether it, or a function of the tests that it names, calls what notes the use of a budget."""
    seen, ahead = {function}, [function]
    while ahead:
        found = ahead.pop()
        codes = [found.__code__]
        for code in codes:
            codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
        named = [found.__globals__.get(name) for code in codes for name in code.co_names]
        others = [inspect.unwrap(x) for x in named if isinstance(x, types.FunctionType)]
        fresh = {x for x in others if x.__module__.startswith("tests.")} - seen
        seen |= fresh
        ahead += fresh
    return budget.note in seen


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def process_state() -> dict:
    """What a test can change under the tests after it."""
    state = {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "process group": torch.distributed.is_initialized(),
        "folder": os.getcwd(),
    }
    theirs = ("PYTEST_", "TORCHINDUCTOR_")  # which pytest and torch.compile set by themselves
    return state | {f"${name}": value for name, value in os.environ.items() if not name.startswith(theirs)}


@pytest.fixture(autouse=True)
def leaves_the_process_as_it_was():
    """Else tests would depend on their order, and another one would fail than the one at fault."""
    before = process_state()
    yield
    after = process_state()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert not changed, {name: (before.get(name), after.get(name)) for name in changed}
