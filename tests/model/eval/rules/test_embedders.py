"""Texts as vectors: by a function, by an endpoint, and by counting words."""

import sys
from types import ModuleType

import numpy as np
import pytest

from afn_model.eval.rules import embedders
from afn_model.eval.rules.embedders import embedder
from afn_model.eval.score import RuleError
from tests.model.infer.text_endpoint import text_endpoint

TEXTS = ["A dog barks.", "the DOG barks, a", "rain"]


def rows(body, order=1):
    made = [{"index": n, "embedding": [len(text), n]} for n, text in enumerate(body["input"])]
    return {"object": "list", "data": made[::order]}


def test_hashed_words_know_equal_words_alone():
    embed, name = embedder("hashed-words")
    assert "no language model" in name
    near = embed([*TEXTS, "", "barks DOG a"])
    alike = near @ near.T
    assert alike[0, 4] == pytest.approx(1)
    assert alike[0, 1] == pytest.approx(3 / np.sqrt(3 * 4))
    assert alike[0, 2] == 0 == alike[3, 3]


def test_an_endpoint(monkeypatch):
    monkeypatch.setattr(embedders, "TOGETHER", 2)
    monkeypatch.setenv("AFN_EMBED_KEY", "k")
    with text_endpoint(lambda body: rows(body, -1)) as there:
        embed, name = embedder(f"{there.url}#nv-embed")
        assert name == "nv-embed"
        assert embed(TEXTS).tolist() == [[12, 0], [16, 1], [4, 0]]
        assert there.asked[0] == ("POST /v1/embeddings", "Bearer k", {"model": "nv-embed", "input": TEXTS[:2]})
        assert embed([]).shape == (0, 1)
        assert embedder(f"{there.url}/embeddings")[1] == "first"
        assert embedder(f"{there.url}/embeddings#x")[0](TEXTS[:1]).tolist() == [[12, 0]]
        assert [where for where, _, _ in there.asked[2:]] == ["GET /v1/models", "POST /v1/embeddings"]


@pytest.mark.parametrize(
    ("said", "problem", "times"),
    [
        (429, "429 Too Many Requests", 3),
        (401, "401 Unauthorized", 1),
        ({"data": [{"index": 0}]}, "no embeddings in the reply", 1),
        ({"data": None}, "no embeddings in the reply", 1),
        ({"data": [{"index": 0, "embedding": [1]}]}, "3 vectors of one width are expected, got shape", 1),
        ({"data": [{"index": n, "embedding": [1] * n} for n in range(3)]}, "3 vectors of one width", 1),
        ({"data": [{"index": n, "embedding": [None]} for n in range(3)]}, "3 vectors of one width", 1),
        (b"{", "no JSON object", 1),
    ],
)
def test_an_endpoint_that_fails(monkeypatch, said, problem, times):
    monkeypatch.setattr(embedders, "WAITS", (0.0, 0.0))
    with text_endpoint(lambda body: said) as there, pytest.raises(RuleError, match=problem):
        embedder(f"{there.url}#m")[0](TEXTS)
    assert len(there.asked) == times


def test_a_function_of_somebody(monkeypatch):
    module = ModuleType("somebody")
    monkeypatch.setitem(sys.modules, "somebody", module)
    module.ok = lambda texts: [[len(text)] for text in texts]
    module.bad = lambda texts: 1 / 0
    module.few = lambda texts: [[1]]
    embed, name = embedder("somebody:ok")
    assert (embed(TEXTS).tolist(), name) == ([[12], [16], [4]], "somebody:ok")
    with pytest.raises(RuleError, match="somebody:bad: ZeroDivisionError"):
        embedder("somebody:bad")[0](TEXTS)
    with pytest.raises(RuleError, match="3 vectors"):
        embedder("somebody:few")[0](TEXTS)
    for wrong in ("somebody:no", "nobody:at.all", "somebody", "words"):
        with pytest.raises(ValueError, match=f"embedder {wrong}: "):
            embedder(wrong)
