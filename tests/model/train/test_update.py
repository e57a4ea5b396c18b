"""What an optimiser step does beside the arithmetic, which test_trainer.py has."""

import gc
import weakref

import pytest

from afn_model.train.update import collected_together


class Knot:
    """Garbage that only a collection finds."""

    def __init__(self):
        self.own = self


def knot() -> weakref.ref:
    return weakref.ref(Knot())


def test_garbage_is_collected_at_the_same_steps():
    assert gc.isenabled()
    with collected_together(3) as collect:
        assert not gc.isenabled()
        first = knot()
        collect(1)
        assert first() is not None
        collect(3)
        assert first() is None
        old = Knot()
        gc.collect()
        second = weakref.ref(old)
        del old
        collect(6)
        assert second() is not None, "a collection of young objects finds no old ones"
        collect(60)
        assert second() is None
    assert gc.isenabled()


def test_collection_goes_on_after_an_error():
    with pytest.raises(ValueError, match="here"), collected_together():
        raise ValueError("here")
    assert gc.isenabled()
