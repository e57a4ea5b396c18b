"""Names of version 0.1.0: the same things under their new names, with a warning."""

import afn_distributed
import numpy as np
import pytest
import torch
from afn_distributed import RankLayout, dispatch, make_plan, renamed
from afn_distributed.process import Process


@pytest.mark.parametrize("name", renamed.RENAMED)
def test_an_old_name_is_the_new_one_and_warns(name):
    new = renamed.RENAMED[name]
    with pytest.warns(DeprecationWarning, match=f"{name} is now called {new.__name__}"):
        assert getattr(afn_distributed, name) is new


def test_the_old_module():
    with pytest.warns(DeprecationWarning, match="deal is now called assign_balanced"):
        from afn_distributed.route import deal
    assert deal is dispatch.assign_balanced
    with pytest.warns(DeprecationWarning, match="Layout is now called RankLayout"):
        from afn_distributed import Layout
    assert Layout is RankLayout


def test_old_attributes():
    process, plan = Process(0, 4, 0, torch.device("cpu"), False), make_plan([0, 9, 12], ring=2)
    with pytest.warns(DeprecationWarning, match=r"Process\.world is now called Process\.world_size"):
        assert process.world == 4
    with pytest.warns(DeprecationWarning, match=r"Plan\.holder is now called Plan\.rank_of_token"):
        assert np.array_equal(plan.holder(), plan.rank_of_token())


def test_names_that_never_were():
    assert not hasattr(afn_distributed, "shuffle")
    with pytest.raises(ImportError, match="shuffle"):
        from afn_distributed import shuffle  # noqa: F401
