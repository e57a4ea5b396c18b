"""The picture of a run: better is right, whatever the metric, and everything is inside."""

import math
from dataclasses import replace

import pytest

from afn_model.eval.reports.picture import MOST, ScoreLine, draw, figure_of
from afn_model.eval.reports.scored import scored
from afn_model.eval.score import Tools
from afn_model.plot_style import plotting
from tests.model.eval.reports.test_scored import FACTS, ROW, answers

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
NAN = math.nan
LINE = ScoreLine("Some", "accuracy %", 60, 58, 62, 60, 50, 80)


def test_better_is_above_one_in_either_direction():
    wer = replace(LINE, metric="WER %", value=2.0, paper=1.0, lower=True)
    assert LINE.share(66) == pytest.approx(1.1)
    assert wer.share(2.0) == 0.5
    assert wer.share(0.0) == math.inf
    assert math.isnan(LINE.share(NAN))
    assert LINE.reached() == 0.6
    assert wer.reached() == 0.98
    assert replace(LINE, metric="1-10", value=10).reached() == 1


def test_every_number_has_a_place_inside_the_axes():
    lines = [
        LINE,
        replace(LINE, label="far", metric="WER %", lower=True, value=1.0, low=0, high=2, paper=60, other=0.5, af3=900),
        replace(LINE, label="lone", paper=NAN, af3=NAN, other=NAN, low=NAN, high=NAN),
    ]
    with plotting() as plt:
        figure = figure_of(plt, lines, "A title")
        above, below = figure.axes
        low, high = above.get_xlim()
        places = [x for dots in above.collections for x, _ in dots.get_offsets()]
        assert len(places) == 6
        assert all(low <= x <= high <= MOST + 0.04 for x in places)
        assert [text.get_text() for text in above.get_yticklabels()] == ["Some · accuracy %", "far · WER % ↓"]
        assert [text.get_text() for text in below.get_yticklabels()] == ["lone · accuracy %"]
        assert [bar.get_width() for bar in below.patches] == [0.6]
        plt.close(figure)


def test_a_run_is_drawn_and_one_without_numbers_is_not(tmp_path):
    row, some = replace(ROW, scorers=ROW.scorers[:1]), answers("dog", "cat")
    scores = scored([row], {"some": some}, Tools())
    path = draw(tmp_path / "report.png", scores, FACTS)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    nothing = scored([row], {"some": answers(None)}, Tools())
    assert draw(tmp_path / "none.png", nothing, FACTS) is None
    assert not (tmp_path / "none.png").exists()
