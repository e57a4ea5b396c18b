"""The model that most tests of this folder patch, and a batch for it."""

import pytest

from tests.kernels.patch_models import batch, build


@pytest.fixture
def model():
    return build("qwen2")


@pytest.fixture
def data():
    return batch("qwen2")
