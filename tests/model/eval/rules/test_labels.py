"""Labels, as texts and by embeddings."""

import numpy as np
import pytest

from afn_model.eval.rules.labels import labels, nearest, retrieval
from afn_model.eval.score import RuleError, Tools
from tests.model.eval.rules.saying import points, said

KINDS = ("crying", "cough", "guitar", "electric guitar", "synth_lead")


def test_a_label_is_named_alone_and_synonyms_count_as_it():
    rows = [
        ("cough", "cough", 1, 1),
        ("This is the sound of a cough.", "cough", 1, 1),
        ("A baby's cry", "crying", 0, 1),
        ("The cry of a crying baby", "crying", 1, 1),
        ("crying and a cough", "crying", 0, 0),
        ("electric guitar", "guitar", 0, 0),
        ("An Electric Guitar plays", "electric guitar", 1, 1),
        ("synth lead", "synth_lead", 1, 1),
        ("B", "cough", 0, 0),
        ("a decry", "crying", 0, 0),
        (None, "cough", 0, 0),
    ]
    answered = [said(output, label, KINDS) for output, label, *_ in rows]
    assert points(labels(answered, Tools())) == [row[2] for row in rows]
    more = {"crying": ["cry"], "guitar": ["electric"]}
    assert points(labels(answered, Tools(), synonyms=more)) == [row[3] for row in rows]
    alone = [said(output, label, ()) for output, label in (("dog", "dog"), ("a cat", "cat"), ("dog", "cat"))]
    assert points(labels(alone, Tools())) == [1, 1, 0]


PLANE = {
    "dog": (3, 0),
    "cat": (0, 1),
    "hound": (1, 0.5),
    "purr": (-1, 2),
    "mew": (1, 2),
    "": (9, 9),
    "hm": (0, 0),
    "a dog": (0, 2),
}


def embed(texts):
    return np.array([PLANE[text] for text in texts], float)


def test_the_nearest_label_by_the_angle():
    tools = Tools(embed=embed, embed_name="plane")
    rows = [
        ("hound", "dog", 1),
        ("purr", "cat", 1),
        ("mew", "cat", 1),
        ("hound", "cat", 0),
        ("", "dog", 0),
        ("hm", "dog", 0),
        (None, "dog", 0),
    ]
    answered = [said(output, label, ("dog", "cat")) for output, label, _ in rows]
    score = retrieval(answered, tools)
    assert points(score) == [row[2] for row in rows]
    assert score.signature == "nearest label by plane"
    assert points(retrieval([said("hound", "cat", ("dog", "cat"))], tools)) == [0]
    assert nearest(tools, ["hound"], [["a dog", "cat"]]) == [0]  # of equally near ones the first
    with pytest.raises(RuleError, match="embedder"):
        retrieval(answered, Tools())
