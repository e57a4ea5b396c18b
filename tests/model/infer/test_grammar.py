"""Structured answers: what llguidance allows, a random model says."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from afn_model.infer.finish import Finish
from afn_model.infer.grammar import Grammars, masks
from afn_model.infer.sampler import Sampler
from afn_model.infer.sampling_params import SamplingParams
from bench import syncs
from tests.tiny import tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"bark": {"type": "boolean"}, "times": {"type": "array", "items": {"type": "integer"}}},
    "required": ["bark", "times"],
    "additionalProperties": False,
}
TIMES = r"[0-5][0-9]:[0-5][0-9]( dog| cat)+é"


@pytest.fixture(scope="module")
def of():
    return tokenizer()


@pytest.fixture(scope="module")
def grammars(of):
    pytest.importorskip("llguidance", reason="llguidance (extra grammar) is not installed")
    return Grammars(of.to_str(), of.get_vocab_size() + 9, [2, 0])


def test_random_rows_keep_to_their_grammars(of, grammars):
    """Beside a row without one, whose tokens are those that it has alone."""
    wanted, size = {0: TIMES, 2: SCHEMA, 3: TIMES}, grammars.vocab_size
    logits, steps = 3 * torch.randn(300, 4, size, generator=torch.Generator().manual_seed(0)), 300
    logits[:, :, [2, 0]] = -20.0  # they end where nothing else may come
    logits[:, :, [of.token_to_id(letter) for letter in "]},"]] = 6.0
    texts = {}
    for rows in ((0, 1, 2, 3), (1,)):
        sampler, states, ends = Sampler(4, size, "cpu"), {}, {}
        for row in rows:
            asked = SamplingParams(temperature=1.0, stop_token_ids=(2, 0), repetition_penalty=1.0)
            sampler.admit(row, asked, row, [])
            ends[row] = Finish(asked, steps, decode=lambda ids: of.decode(ids, skip_special_tokens=True))
            if row in wanted:
                states[row] = grammars.start(wanted[row])
        for step in range(steps):
            allowed = masks({rows.index(row): state for row, state in states.items()}, "cpu")
            at = torch.tensor(rows)
            drawn = sampler.next(logits[step][at], at, torch.full((len(rows),), step), allowed=allowed)
            assert drawn.finite.all()
            for row, token in zip(rows, drawn.token.tolist(), strict=True):
                if row in states:
                    states[row].accept(token)
                if ends[row].reason is None:
                    ends[row].feed(token, ended=row in states and states[row].ended)
                if ends[row].reason is not None and row in states:
                    del states[row]
            if not states and len(rows) > 1:
                steps = step + 1
                break
        if len(rows) == 1:
            assert ends[1].tokens == texts[1]
        else:
            texts = {row: one.tokens if row == 1 else one.text for row, one in ends.items()}
            assert [ends[row].reason for row in wanted] == ["stop"] * 3
    assert re.fullmatch(TIMES, texts[0])
    assert re.fullmatch(TIMES, texts[3])
    read = json.loads(texts[2])
    assert json.dumps(read) == texts[2], "one line, as json.dumps writes"
    assert isinstance(read["bark"], bool)
    assert all(isinstance(time, int) for time in read["times"])


def test_a_state_is_its_own(of, grammars):
    first, second = grammars.start("ab+"), grammars.start("ab+")
    assert len([name for name in grammars.compiled if "ab+" in name]) == 1
    before = second.mask()
    first.accept(of.token_to_id("a"))
    assert not np.array_equal(first.mask(), before)
    assert np.array_equal(second.mask(), before)
    letter = of.token_to_id("a")
    assert before[letter // 32] >> letter % 32 & 1
    with pytest.raises(ValueError, match=r"^token 2 does not fit the grammar: [^\n]+$"):
        second.accept(2)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ("((", r"the regular expression '\(\(' cannot be compiled: .*unclosed group"),
        ("a(?=b)", r"the regular expression 'a\(\?=b\)' cannot be compiled: .*look-around"),
        ({"type": "nothing"}, "the JSON schema {'type': 'nothing'} cannot be compiled: Invalid type: nothing"),
        ({"$ref": "#"}, r"the JSON schema {'\$ref': '#'} cannot be compiled: "),
        ({"type": float}, "the JSON schema {'type': <class 'float'>} cannot be compiled: .*not JSON serializable"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(grammars, grammar, expected):
    with pytest.raises(ValueError, match=expected) as error:
        grammars.start(grammar)
    assert "\n" not in str(error.value)


def test_masks_are_copied_without_waiting(grammars):
    with syncs.Waits() as waits:
        rows, words = masks({1: grammars.start("a"), 4: grammars.start(SCHEMA)}, syncs.DEVICE)
    assert not waits.found
    assert rows.values.tolist() == [1, 4]
    assert words.values[0].numpy().tobytes() == grammars.start("a").mask().tobytes()
    assert masks({}, "cpu") is None


def test_a_package_that_is_missing(of, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r"^a grammar needs llguidance: pip install 'afn-kernels\[grammar\]'$"):
        Grammars(of.to_str(), 500, [2])


def test_a_tokenizer_that_is_none():
    pytest.importorskip("llguidance", reason="llguidance (extra grammar) is not installed")
    with pytest.raises(ValueError, match=r"^llguidance cannot read the tokenizer: [^\n]+$"):
        Grammars("{}", 500, [2])
