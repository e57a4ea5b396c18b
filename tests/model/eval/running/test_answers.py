"""Lines of answers: which of several counts."""

import json

from afn_model.eval.running.answers import FOLDER, answered, read_answers
from tests.model.eval.running.scripted import asks, items


def write(out, name, *rows, end="\n"):
    (out / FOLDER).mkdir(exist_ok=True)
    said = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (out / FOLDER / name).write_text("\n".join(said) + end)


def answer(key, text):
    return {"id": key, "answer": text, "finish": "stop"}


def error(key, text):
    return {"id": key, "error": {"code": "x", "message": text, "line": 1}}


def test_the_last_answer_counts_and_an_error_replaces_none(tmp_path):
    assert read_answers(tmp_path) == {}
    write(tmp_path, "1-of-1.jsonl", error("a", "first"), answer("a", "a1"), error("a", "late"), error("b", "b1"))
    write(tmp_path, "1-of-2.jsonl", answer("c", "c1"), answer("c", "c2"), error("b", "b2"), error("d", "d1"))
    write(tmp_path, "2-of-2.jsonl", error("a", "later"), answer("d", "d2"), answer("e", ""))
    found = read_answers(tmp_path)
    said = {key: row.get("answer", row.get("error", {}).get("message")) for key, row in found.items()}
    assert said == {"a": "a1", "b": "b2", "c": "c2", "d": "d2", "e": ""}


def test_what_is_no_line(tmp_path):
    torn = json.dumps(answer("b", "b1"))
    for end in ("", torn[:-1], torn[:9], torn):
        write(tmp_path, "1-of-1.jsonl", answer("a", "a1"), "no json", "[1]", "3", {"id": 3, "answer": "x"}, end, end="")
        assert read_answers(tmp_path) == {"a": answer("a", "a1")}
    write(tmp_path, "1-of-1.jsonl", '{"id": "x", "answ\ud83d'.encode("utf-8", "replace").decode(), answer("c", "c1"))
    assert read_answers(tmp_path) == {"c": answer("c", "c1")}


def test_items_with_their_answers(tmp_path):
    made = asks(items(4))
    rows = {made[0].key: answer(made[0].key, "dog"), made[1].key: error(made[1].key, "broken")}
    rows[made[3].key] = answer(made[3].key, "") | {"finish": None}
    found = [(one.item.id, one.text, one.error, one.finish) for one in answered(made, rows)]
    none = ("i2", None, "", "")
    assert found == [("i0", "dog", "", "stop"), ("i1", None, "broken", ""), none, ("i3", "", "", "")]
