"""Answers of a given form: JSON of a schema, or text of a regular expression. llguidance says which tokens fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afn_model.checks import said, shown
from afn_model.network.device_batch import copied

KEPT = 64  # compiled grammars
KEPT_TOKENIZERS = 4  # of an engine, each with its stop tokens: clients name these
# As json.dumps writes. Free white space lets a model write nothing else until its answer is at its longest.
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Compiles grammars for a tokenizer; a grammar that was compiled before is copied.

    Args:
        tokenizer: the text of a tokenizer.json, such as ``tokenizer.to_str()``.
        vocab_size: columns of the logits.
        stop_token_ids: what ends an answer, where the grammar lets it end.

    Raises:
        ValueError: llguidance is not installed, or cannot read the tokenizer.
    """

    def __init__(self, tokenizer: str, vocab_size: int, stop_token_ids: Sequence[int]):
        try:
            import llguidance
        except ImportError:
            raise ValueError("a grammar needs llguidance: pip install 'afn-kernels[grammar]'") from None
        self.library: Any = llguidance
        self.vocab_size = vocab_size
        try:
            options: dict[str, Any] = {"n_vocab": vocab_size, "eos_token": list(stop_token_ids)}
            self.tokenizer = llguidance.LLTokenizer(tokenizer, **options)
        except ValueError as error:
            raise ValueError(f"llguidance cannot read the tokenizer: {said(error)}") from None
        self.compiled: dict[str, Any] = {}

    def start(self, grammar: Mapping[str, Any] | str) -> GrammarState:
        """The state of an answer that has no tokens yet.

        Args:
            grammar: a JSON schema, or a regular expression that the whole answer matches (Rust's syntax: no
                look-around, no back-references).

        Raises:
            ValueError: a grammar that cannot be compiled.
        """
        kind = "regular expression" if isinstance(grammar, str) else "JSON schema"
        try:
            text = grammar if isinstance(grammar, str) else json.dumps(grammar, sort_keys=False)
            name = f"{kind} {text}"
            if name not in self.compiled:
                self.compiled[name] = self.compile(grammar, text)
                if len(self.compiled) > KEPT:
                    del self.compiled[next(iter(self.compiled))]
        except (TypeError, ValueError) as error:
            raise ValueError(f"the {kind} {shown(grammar)} cannot be compiled: {said(error)}") from None
        return GrammarState(self.compiled[name].deep_copy(), self.vocab_size)

    def compile(self, grammar: Mapping[str, Any] | str, text: str) -> Any:
        matcher = self.library.LLMatcher
        if isinstance(grammar, str):
            source = matcher.grammar_from_regex(text)
        else:
            source = matcher.grammar_from_json_schema(text, overrides=JSON_FORM)
        compiled = matcher(self.tokenizer, source, log_level=0)
        if compiled.is_error():
            raise ValueError(compiled.get_error())
        if not GrammarState(compiled.deep_copy(), self.vocab_size).mask().any():
            raise ValueError("nothing fits it")
        return compiled


class GrammarState:
    """Where an answer is in its grammar.

    Args:
        matcher: an ``llguidance.LLMatcher`` of its own.
        vocab_size: columns of the logits.
    """

    def __init__(self, matcher: Any, vocab_size: int):
        self.matcher, self.words = matcher, -(-vocab_size // 32)

    @property
    def ended(self) -> bool:
        """Whether nothing but a stop token may follow, or one came."""
        return self.matcher.is_stopped()

    def accept(self, token: int) -> None:
        """Goes on by a token; ValueError where it does not fit."""
        if not self.matcher.consume_token(token):
            raise ValueError(f"token {token} does not fit the grammar: {said(ValueError(self.matcher.get_error()))}")

    def mask(self) -> np.ndarray:
        """[ceil(vocabulary / 32)] int32: bit i of word w is whether token 32 w + i may come next.

        Raises:
            ValueError: the grammar is too complex to go on with.
        """
        mask = np.zeros(self.words, np.int32)
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self.matcher.is_error():
            raise ValueError(f"the grammar cannot go on: {said(ValueError(self.matcher.get_error()))}")
        return mask


def _mask(state: GrammarState) -> np.ndarray:
    """The mask; all tokens where the grammar cannot go on, which then accepts none: that ends this answer alone."""
    try:
        return state.mask()
    except ValueError:
        return np.full(state.words, -1, np.int32)


def masks(states: Mapping[int, GrammarState], device: torch.device | str) -> tuple[Tensor, Tensor] | None:
    """What ``Sampler.next`` takes as ``allowed``, for the states of some rows; None where there are none.

    Args:
        states: row of the logits -> state.
        device: of the logits.
    """
    if not states:
        return None
    words = np.stack([_mask(state) for state in states.values()])
    device = torch.device(device)
    return copied(torch.tensor(list(states)), device), copied(torch.from_numpy(words), device)
