"""Shared options: ``--device cuda`` runs the kernel tests on a GPU."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests: cpu or cuda")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))
