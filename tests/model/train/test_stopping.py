"""Signals ask a run to end; the first is answered at once, the second Ctrl-C is not waited for."""

import os
import signal

import pytest

from afn_model.train.stopping import FIRST, stop_signals

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", ALL)
def test_the_first_is_answered_at_once_and_the_handler_comes_back(number, capfd):
    before = signal.getsignal(number)
    with stop_signals() as asked:
        assert not asked
        os.kill(os.getpid(), number)
        assert asked == [True]
        assert capfd.readouterr().err == FIRST
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(asked) == 2
        assert capfd.readouterr().err == "", "once is enough"
    assert signal.getsignal(number) == before


def test_the_second_ctrl_c_ends_it():
    with stop_signals(say=False):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_first_rank_speaks(capfd):
    with stop_signals(say=False) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked
    assert capfd.readouterr().err == ""
