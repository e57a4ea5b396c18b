"""Data cards and curricula: what is counted, in which order, and names that would break a table."""

import yaml

from afn_model.curate.stages.card import MOST, card, curriculum


def exported(count):
    for n in range(count):
        row = {"seconds": 3600.0 * (n + 1), "channel": f"c|{n}\nx", "uses": {"licence": "CC0"}}
        row["privacy"] = {"found": {"phone": 2}, "flags": ["minors"]}
        record = {"axis": "", "task": "t", "source": "h.org", "split": "train" if n else "heldout"}
        yield row, [{**record, "lineage": {"product": "p", "annotator": "m", "prompt": "abc"}}] * (n + 1)


def test_what_a_card_says():
    text = card(list(exported(MOST + 2)), ["about.domain"], 3, {"llm": None}).splitlines()
    assert text[2:4] == ["52 recordings, 1,378.00 hours, 1,378 records;", "1.00 of the hours are held out."]
    assert "| - | t | 1,378 |" in text
    assert "| CC0 | 52 | 1,378.00 | 1,378 |" in text
    assert "| h.org | 52 | 1,378.00 | 1,378 |" in text
    assert "| p | m | abc | 1,378 |" in text
    assert "| - | 52 | 1,378.00 | 1,378 |" in text, "by domain, which nobody tells"
    channels = text[text.index("## By channel") :]
    assert channels[4] == "| c\\|51 x | 1 | 52.00 | 52 |", "the longest first, and no cell breaks the table"
    assert "and 2 more" in channels
    assert "- masked and silenced: phone, 104 times" in text
    assert "- flagged minors: 52 recordings" in text
    assert "The plan names llm." in text
    assert text[-1] == "3 were asked for and are left out."


def test_the_curriculum_has_the_weights_and_room_for_the_longest():
    lines = {"train-long": [{"duration": 95.2}], "train-skills": [{"duration": 3.0}], "heldout-skills": []}
    told = yaml.safe_load(curriculum(["long", "skills"], {"skills": 0.5}, lines))
    assert told["stages"]["sft"]["blend"] == {"long": 1, "skills": 0.5}
    assert told["stages"]["sft"]["max_audio"] == 96
    assert told["datasets"] == {"long": "data/train-long.jsonl", "skills": "data/train-skills.jsonl"}
