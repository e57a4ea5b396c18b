"""Who speaks when: speakers by order of first appearance, turns inside of the recording."""

from afn_model.curate.stage import Failed
from afn_model.curate.stages.diarise import Diarise
from tests.model.curate.stages.heard import context, row


def test_speakers_are_numbered_as_they_appear(tmp_path):
    (kept,) = Diarise().run([row(tmp_path)], context(tmp_path))
    assert kept.fields["speakers"] == [
        {"speaker": "1", "start": 1.0, "end": 1.5},
        {"speaker": "2", "start": 9.7, "end": 10.5},
        {"speaker": "1", "start": 12.0, "end": 12.4},
    ]
    assert kept.fields["diarisation"]["speakers"] == 2
    assert kept.tally == {"turns": 3}


def odd(requests):
    told = [("z", 5.0, 6.0), (7, -1.0, 2.0), ("z", 6.2, 8.0), (7, 5.5, 7.0), (7, 24.0, 30.0), ("z", 26.0, 27.0)]
    turns = [dict(zip(("speaker", "start", "end"), one, strict=True)) for one in [*told, ("q", 3.0, 3.05)]]
    return [{"turns": turns}] * len(requests)


def wrong(requests):
    return [{"turns": [{"speaker": "a", "start": "0:01", "end": 2}]}] * len(requests)


def test_turns_are_joined_cut_and_counted(tmp_path):
    one = row(tmp_path)
    (kept,) = Diarise().run([one], context(tmp_path, call=f"{__name__}:odd"))
    assert [tuple(turn.values()) for turn in kept.fields["speakers"]] == [
        ("1", 0.0, 2.0),
        ("2", 5.0, 8.0),  # over a gap of 0.2 s, while the other speaks
        ("1", 5.5, 7.0),
        ("1", 24.0, 25.0),
    ]
    assert kept.tally == {"turns": 4, "turns outside of the recording": 2}
    (failed,) = Diarise().run([one], context(tmp_path / "b", call=f"{__name__}:wrong"))
    assert failed == Failed("no speakers: not as asked: reply.turns[0].start is no number")


def test_where_nobody_speaks_nobody_is_asked(tmp_path):
    (kept,) = Diarise().run([row(tmp_path, events=())], context(tmp_path, call=f"{__name__}:wrong"))
    assert kept.fields == {"speakers": [], "diarisation": {"speakers": 0}}
    assert kept.tally == {"recordings without speech": 1}
