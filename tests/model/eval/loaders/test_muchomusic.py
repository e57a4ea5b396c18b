from dataclasses import replace

import pytest

from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import changed, copied


def test_a_question_is_asked_without_each_distractor(tmp_path):
    row, _ = copied("muchomusic-perceptual", tmp_path)
    items = load(row, tmp_path)
    assert [item.id for item in items[:5]] == ["7.0", "7.1", "7.2", "7.3", "1740.0"]
    passes = items[:4]
    whole = set().union(*(item.choices for item in passes))
    assert len(whole) == 5
    assert {item.extra["of"] for item in passes} == {"7"}
    assert [whole - set(item.choices) for item in passes] == [{item.extra["left_out"]} for item in passes]
    assert len({item.extra["left_out"] for item in passes}) == 4
    assert all(item.answer in item.choices and len(item.choices) == 4 for item in items)
    assert items[0].clips[0].path == str(tmp_path / "muchomusic-perceptual" / "audio" / "7.mp3")


def test_the_order_of_options_is_a_function_of_the_seed(tmp_path):
    row, folder = copied("muchomusic-perceptual", tmp_path)
    items = load(row, tmp_path)
    changed(folder / "RUL-MuchoMusic.json", lambda rows: dict(reversed(rows.items())))
    other = {item.id: item for item in load(row, tmp_path)}
    assert all(other[item.id] == item for item in items)
    seeded = load(replace(row, options={"seed": 1}), tmp_path)
    assert any(other[item.id].choices != item.choices for item in seeded)
    places = {item.choices.index(item.answer) for item in items}
    assert places == {0, 1, 2, 3}
    once = load(replace(row, options={"passes": "one-shot"}), tmp_path)
    assert [(len(item.choices), item.id) for item in once][:2] == [(5, "20"), (5, "958")]


def test_what_the_authors_script_writes(tmp_path):
    row, folder = copied("muchomusic-original", tmp_path)
    items = load(row, tmp_path)
    assert [item.id for item in items[:3]] == ["415600", "415600#2", "1017"]  # ids are tracks
    assert [item.answer for item in items] == ["flute", "flute", "guitar", "flute", "guitar"]
    assert {item.question for item in items} == {"Which sound do you hear?"}  # that of the example is another
    assert items[3].clips[0].path.endswith("data/musiccaps/audio/[a_b-cdefghi]-[30-40].wav")
    assert items[0].groups == {"dataset": "sdd", "knowledge": "asked"}
    changed(folder / "example_file.json", lambda rows: rows[2].update(answer_orders=[0, 1, 1, 2]))
    with pytest.raises(ValueError, match="question 3: field 'answer_orders' is not an order of 4 answers"):
        load(row, tmp_path)


def test_the_table_as_published(tmp_path):
    row, folder = copied("muchomusic-original", tmp_path)
    prepared = load(row, tmp_path)
    (folder / "example_file.json").unlink()
    items = load(row, tmp_path)
    assert [(i.question, i.answer, i.clips, i.groups) for i in items] == [
        (i.question, i.answer, i.clips, i.groups) for i in prepared
    ]
    assert [item.id for item in items] == ["0", "1", "2", "3", "4"]
    assert any(item.choices[0] != item.answer for item in items)
    path = folder / "muchomusic.csv"
    path.write_text(path.read_text("utf-8").replace("1017.json", "x.json"), "utf-8")
    with pytest.raises(ValueError, match=r"line 4: sdd 'x\.json' is no track of sdd or musiccaps"):
        load(row, tmp_path)
