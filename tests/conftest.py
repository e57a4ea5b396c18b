"""The device of the kernel tests (``--device``, ../conftest.py): on a CPU they run in Triton's interpreter."""

import os

import pytest
import torch


def pytest_configure(config):
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))
