"""Texts as vectors, for rules that take the option or label nearest to an answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afn_model.checks import named
from afn_model.eval.score import RuleError
from afn_model.hashing import text_key
from afn_model.infer.elsewhere import ElsewhereError, first_model, post
from afn_model.infer.retries import WAITS, RetryingEndpoint

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> vectors [n, d], float

WORDS = "hashed-words"
WORDS_NAME = "hashed words (a test's stand-in, no language model)"
DIMENSIONS = 4096
PATH = "/embeddings"
KEY = "AFN_EMBED_KEY"  # environment variable
TOGETHER = 256  # texts of a request
_WORD = re.compile(r"\w+")


def embedder(given: str) -> tuple[Embed, str]:
    """What embeds, and the name that reports give it.

    MMAU-Pro's rule has nvidia/NV-Embed-v2, labels are compared by CLAP's text tower; neither comes with this package.

    Args:
        given: "MODULE:FUNCTION", a function from texts to vectors; the URL of an API like OpenAI's, with the model
            behind a ``#`` (``http://127.0.0.1:8000/v1#NV-Embed-v2``; the first that is listed there without one), whose
            key is the environment's AFN_EMBED_KEY; or "hashed-words", which knows equal words and nothing else.

    Raises:
        ValueError: none of these, or no such module or function.
    """
    if given == WORDS:
        return hashed_words, WORDS_NAME
    if given.startswith(("http://", "https://")):
        return _behind(*given.split("#", 1))
    try:
        return _own(named(given, "it"), given), given
    except ValueError as error:
        raise ValueError(f"embedder {given}: the URL of an API, {WORDS} or a function is expected; {error}") from None


def hashed_words(texts: Sequence[str]) -> np.ndarray:
    """Bags of words: each word counts in one of 4,096 places of a unit vector."""
    found = np.zeros((len(texts), DIMENSIONS))
    for row, text in zip(found, texts, strict=True):
        for word in _WORD.findall(text.lower()):
            row[text_key(word) % DIMENSIONS] += 1
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _own(function: Callable[[list[str]], Any], name: str) -> Embed:
    def embed(texts: Sequence[str]) -> np.ndarray:
        try:
            given = function(list(texts))
        except Exception as error:  # somebody else's code
            raise RuleError(f"embedder {name}: {type(error).__name__}: {error}") from error
        return _vectors(given, len(texts), name)

    return embed


def _behind(url: str, model: str = "") -> tuple[Embed, str]:
    url, key = url.rstrip("/").removesuffix(PATH), os.environ.get(KEY)
    model, endpoint = model or first_model(url, key=key), RetryingEndpoint(url, key=key, waits=WAITS)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows: list[Any] = []
        for first in range(0, len(texts), TOGETHER):
            body = {"model": model, "input": list(texts[first : first + TOGETHER])}
            try:
                reply = endpoint.retried(lambda body=body: post(url, PATH, body, key=key))
                rows += [one["embedding"] for one in sorted(reply["data"], key=lambda one: one["index"])]
            except ElsewhereError as error:
                raise RuleError(str(error)) from None
            except (KeyError, TypeError):
                raise RuleError(f"{url}: there are no embeddings in the reply") from None
        return _vectors(rows, len(texts), url)

    return embed, model


def _vectors(given: Any, count: int, who: str) -> np.ndarray:
    """Vectors as rules take them.

    Raises:
        RuleError: they are not numbers, not one for each text, or not all of one width.
    """
    try:
        found = np.asarray(given, float)
    except (TypeError, ValueError):
        found = np.empty(0)
    if count and (found.ndim != 2 or len(found) != count or not np.isfinite(found).all()):
        raise RuleError(f"{who}: {count} vectors of one width are expected, got shape {list(found.shape)}")
    return found.reshape(count, -1) if count else np.zeros((0, 1))
