"""Keys of questions: what an answer depends on is in them, and nothing else."""

import json
from dataclasses import replace

import pytest

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.running.asks import AskSettings, asks_of
from afn_model.infer.batch_lines import read_line
from afn_model.infer.sampling_params import SamplingParams
from tests.model.eval.running.scripted import ASKING, ROW, asks, items

ITEM = Item("a", "What is said?", (ItemClip("x/1.wav", 1.0, 2.5),), ("yes", "no"), "yes")
KEY = "made-up/a/a709004d57aa140a"


def key(item=ITEM, asking=ASKING, row=ROW, digest=lambda path: "d1") -> str:
    (found,) = asks_of(row, [item], asking, digest)
    return found.key


def test_a_key_is_the_same_everywhere():
    """In each process and on each machine: the number stands here."""
    assert key() == KEY
    assert key(asking=replace(ASKING, model=dict(reversed(ASKING.model.items())))) == KEY
    assert key(asking=replace(ASKING, model=dict(ASKING.model) | {"name": "renamed"})) == KEY
    assert key(replace(ITEM, clips=(ItemClip("moved/2.flac", 1.0, 2.5),))) == KEY, "another path"
    assert key(replace(ITEM, answer="no", groups={"task": "x"}, extra={"x": 1})) == KEY, "what nobody is told"
    assert key(asking=replace(ASKING, generation={"temperature": 0})) == KEY


def test_all_that_an_answer_depends_on_changes_the_key():
    changed = {
        "item": key(replace(ITEM, id="b")),
        "question": key(replace(ITEM, question="What is said ?")),
        "order of options": key(replace(ITEM, choices=("no", "yes"))),
        "bytes": key(digest=lambda path: "d2"),
        "start": key(replace(ITEM, clips=(ItemClip("x/1.wav", 1.1, 2.5),))),
        "end": key(replace(ITEM, clips=(ItemClip("x/1.wav", 1.0),))),
        "another recording": key(replace(ITEM, clips=(*ITEM.clips, *ITEM.clips))),
        "none": key(replace(ITEM, clips=())),
        "benchmark": key(row=replace(ROW, name="other")),
        "version": key(row=replace(ROW, version="v2")),
        "prompt": key(asking=replace(ASKING, prompt="choose-letter")),
        "official prompt": key(asking=replace(ASKING, prompt="official"), row=replace(ROW, official_prompt="question")),
        "variant": key(asking=replace(ASKING, variant="think")),
        "model": key(asking=replace(ASKING, model={"name": "scripted", "weights": "1" * 8})),
        "a name alone": key(asking=replace(ASKING, model={"name": "x"})),
        "another name": key(asking=replace(ASKING, model={"name": "y"})),
        "generation": key(asking=replace(ASKING, generation={"max_tokens": 7})),
        "generation of the table": key(row=replace(ROW, generation={"temperature": 0.5})),
        "seed": key(asking=replace(ASKING, seed=1)),
    }
    assert len({KEY, *changed.values()}) == 1 + len(changed), changed


def test_a_line_is_one_that_a_batch_takes():
    made = [replace(one, id=f"{one.id}/ü#") for one in items(2)]
    for ask in asks_of(ROW, made, ASKING, lambda path: path, lambda path, start, end: 1.5):
        line = read_line(json.dumps(ask.record()).encode(), 1)
        request = line.request("/data", SamplingParams())
        assert line.id == ask.key
        assert request.params == SamplingParams(max_new_tokens=1024, temperature=0.0, seed=0)
        assert request.turns[0].audios[0].source == "/data/0.wav"
        assert request.turns[0].parts[-1] == f"{ask.item.question} Choose the correct option from the following " + (
            "options:\n(A) dog\n(B) cat"
        )
        assert line.fields["duration"] == 1.5
    twice = replace(ITEM, clips=(ItemClip("1.wav", 0.0, 1.0), ItemClip("1.wav", 0.0, 1.0), ItemClip("2.wav")))
    for lengths, expected in (({"1.wav": 1.0, "2.wav": 2.0}, 3.0), ({"1.wav": 1.0, "2.wav": 0.0}, 0.0)):
        (ask,) = asks_of(ROW, [twice], ASKING, str, lambda path, *_, lengths=lengths: lengths[path])
        assert ask.seconds == expected, "each recording once; unknown where one is"


def test_what_cannot_be_asked():
    named = Item("x", "Is <sound-2> louder?", (ItemClip("1.wav"),))
    first, second = asks([named, *items(1)], replace(ASKING, prompt="question"))
    assert first.problem == "x: the question names recording 2 of 1"
    assert second.problem == ""
    for asking, error in (
        (replace(ASKING, prompt="no"), "no: no such prompt; there are official, question"),
        (replace(ASKING, generation={"n": 2}), "n is 2: an item has one answer"),
    ):
        with pytest.raises(ValueError, match=error):
            asks(items(1), asking)


def test_the_prompt_and_the_tokens_of_a_variant():
    row = replace(ROW, official_prompt="question", generation={"max_tokens": 9})
    assert AskSettings({}, prompt="official").prompt_of(row) == "question"
    assert AskSettings({}, prompt="official").prompt_of(ROW) == "choose"
    assert [AskSettings({}, variant=name).generation_of(ROW)["max_tokens"] for name in ("instruct", "think")] == [
        1024,
        4096,
    ]
    assert AskSettings({}, variant="think").generation_of(row)["max_tokens"] == 9
    assert AskSettings({}, generation={"max_tokens": 3}).generation_of(row)["max_tokens"] == 3


def test_an_item_with_more_options_than_letters_is_a_problem_of_its_own():
    made = [replace(ITEM, choices=tuple(f"c{n}" for n in range(count))) for count in (26, 27)]
    assert [ask.problem for ask in asks(made)] == ["", "27 choices are more than the 26 letters"]


def test_settings_of_another_version():
    assert AskSettings.of_json(json.loads(json.dumps(ASKING.as_json())), "run.json") == ASKING
    for told in ({"model": {}, "new": 1}, {}, None):
        with pytest.raises(ValueError, match=r"^run\.json: it is of another version"):
            AskSettings.of_json(told, "run.json")
