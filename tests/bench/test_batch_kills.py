"""A batch that is killed three times: a short form of ``bench.batch_kills``."""

import pytest

from bench.batch_kills import measure

pytestmark = pytest.mark.slow


def test_every_line_once_and_as_if_nobody_had_killed_it(tmp_path, request):
    found = measure(tmp_path, kills=3, lines=18, recordings=3, seed=request.config.option.seed)
    assert (found["lost"], found["twice"], found["changed"]) == (0, 0, 0)
    assert found["kills"] > 0
    assert found["different_answers"] > 9
