"""Tokens as OpenAI writes them: their bytes join to the text, whatever characters they part."""

import json
import math

from afn_model.infer.token_logprobs import BYTES, TokenLogprobs
from tests.tiny import tokenizer


def test_bytes_join_to_the_text():
    for of in (tokenizer(), tokenizer((), 262)):
        written = TokenLogprobs(of)
        for text in ("déjà vu 你好 🐕\n", "".join(map(chr, range(1, 300)))):
            ids = of.encode(text, add_special_tokens=False).ids
            entries = written.entries(ids, [-0.5] * len(ids))
            assert b"".join(bytes(entry["bytes"]) for entry in entries) == text.encode()
            assert {"token": "\n", "bytes": [10], "logprob": -0.5, "top_logprobs": []} in entries
    assert sorted(BYTES.values()) == list(range(256))


def test_likeliest_tokens_and_what_may_not_come():
    of = tokenizer()
    (entry,) = TokenLogprobs(of).entries([97], [-math.inf], [[(97, -0.1), (of.token_to_id("<|im_end|>"), -math.inf)]])
    assert [one["logprob"] for one in entry["top_logprobs"]] == [-0.1, -9999.0]
    assert entry["top_logprobs"][1]["token"] == "<|im_end|>"
    assert json.loads(json.dumps(entry, allow_nan=False))["logprob"] == -9999.0
