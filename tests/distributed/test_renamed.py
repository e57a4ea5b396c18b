"""Names of version 0.1.0: the same things under their new names, with a warning."""

import importlib

import numpy as np
import pytest
import torch

import afn_distributed
from afn_distributed import RankLayout, dispatch, make_plan, renamed
from afn_distributed.process import Process


@pytest.mark.parametrize("module", renamed.RENAMED)
def test_an_old_name_is_the_new_one_and_warns(module):
    for name, new in renamed.RENAMED[module].items():
        with pytest.warns(DeprecationWarning, match=f"{module}: {name} is now called {new.__name__}"):
            assert getattr(importlib.import_module(module), name) is new


def test_the_old_module():
    with pytest.warns(DeprecationWarning, match="deal is now called assign_balanced"):
        from afn_distributed.route import deal
    assert deal is dispatch.assign_balanced
    with pytest.warns(DeprecationWarning, match="Layout is now called RankLayout"):
        from afn_distributed import Layout
    assert Layout is RankLayout


def test_the_old_module_under_another_name():
    import afn_distributed.route as r
    from afn_distributed import route

    assert route is r
    with pytest.warns(DeprecationWarning, match="route is now called dispatch"):
        assert r.route is dispatch.dispatch
    with pytest.warns(DeprecationWarning, match="deal is now called assign_balanced"):
        assert r.deal([1.0], 1).tolist() == [0]
    assert not hasattr(r, "shuffle")
    assert not hasattr(afn_distributed, "deal"), "only its module had it"


def test_old_attributes():
    layout = RankLayout(12, ulysses=2, ring=3)
    with pytest.warns(DeprecationWarning, match=r"Layout\.world is now called RankLayout\.world_size"):
        assert layout.world == 12
    with pytest.warns(DeprecationWarning, match=r"Layout\.sequence is now called RankLayout\.sp_size"):
        assert layout.sequence == 6
    process, plan = Process(0, 4, 0, torch.device("cpu"), False), make_plan([0, 9, 12], ring=2)
    with pytest.warns(DeprecationWarning, match=r"Process\.world is now called Process\.world_size"):
        assert process.world == 4
    with pytest.warns(DeprecationWarning, match=r"Plan\.holder is now called Plan\.rank_of_token"):
        assert np.array_equal(plan.holder(), plan.rank_of_token())


def test_names_that_never_were():
    assert not hasattr(afn_distributed, "shuffle")
    with pytest.raises(ImportError, match="shuffle"):
        from afn_distributed import shuffle  # noqa: F401
