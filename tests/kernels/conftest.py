"""In these files CUDA kernels run on the CPU too, compiled for the host, unless the tests run on a GPU."""

import pytest

from tests.cuda import compiler, emulated


@pytest.fixture(scope="module", autouse=True)
def host_kernels(device):
    if device.type == "cuda" or compiler() is None:
        yield
        return
    with emulated():
        yield
