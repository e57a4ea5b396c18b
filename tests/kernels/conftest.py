"""In these files kernels run on the CPU too, in Triton's interpreter or compiled for the host, unless on a GPU."""

import pytest

from afn_kernels import _triton
from tests.cuda import compiler, emulated


@pytest.fixture(scope="session", autouse=True)
def interpreter(device):
    if device.type == "cpu" and not _triton.available():
        from tests.kernels.interpreter import install

        install()


@pytest.fixture(scope="module", autouse=True)
def host_kernels(device):
    if device.type == "cuda" or compiler() is None:
        yield
        return
    with emulated():
        yield
