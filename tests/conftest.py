"""Shared options: ``--device cuda`` runs the kernel tests on a GPU."""

import os

import pytest
import torch


def pytest_configure(config):
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests: cpu or cuda")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))
