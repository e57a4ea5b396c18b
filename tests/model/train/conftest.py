"""A suite under nohup has SIGHUP ignored, which a run of training leaves so: these tests begin as in a terminal."""

import signal

import pytest


@pytest.fixture(autouse=True)
def hang_up():
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
