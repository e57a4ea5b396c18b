"""What was said of late is known for a while, to whom it was said."""

from afn_model.serve import spoken_texts
from afn_model.serve.spoken_texts import KEPT_SECONDS, SpokenTexts


def test_for_an_hour_to_its_owner(monkeypatch):
    now = [100.5]
    texts = SpokenTexts(lambda: now[0])
    assert texts.keep("ann", "audio_1", "A dog.") == 100 + KEPT_SECONDS
    assert (texts.get("ann", "audio_1"), texts.get("bob", "audio_1"), texts.get("ann", "audio_2")) == (
        "A dog.",
        None,
        None,
    )
    now[0] += KEPT_SECONDS
    assert texts.get("ann", "audio_1") is None
    monkeypatch.setattr(spoken_texts, "KEPT", 2)
    for id in "abc":
        texts.keep("ann", id, id)
    assert [texts.get("ann", id) for id in "abc"] == [None, "b", "c"]
    monkeypatch.setattr(spoken_texts, "CHARACTERS", 10)
    for id, size in (("d", 6), ("e", 4), ("f", 5)):
        texts.keep("ann", id, size * id)
    assert [texts.get("ann", id) for id in "cdef"] == [None, None, "eeee", "fffff"]
