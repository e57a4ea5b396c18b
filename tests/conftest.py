"""What all tests share: the device (``--device``, ../conftest.py), and a process that none of them may change.

On a CPU kernels run in Triton's interpreter.
"""

import os

import pytest
import torch


def pytest_configure(config):
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported


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
