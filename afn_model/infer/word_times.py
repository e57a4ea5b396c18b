"""When each word of a text is said, from the decoder's attention to the audio.

The found text is given to the decoder once more. The attention weights of some heads, normalised over the tokens,
median-filtered over the frames and averaged, say which frames a token is about; a monotone path through them gives
every token its frames.

Source: Radford et al., 2022, arXiv:2212.04356, and its code's ``timing.py``. A token has the row of weights that
predicts it, as there; transformers' ``_extract_token_timestamps`` gives it the row behind. Weights that are equal for
all tokens count as 0 here, where transformers computes 0 / 0. The first token begins where the path is best, in both of
them with the recording.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afn_model.checks import shown
from afn_model.config import SpeechConfig
from afn_model.files import read_json, write_json
from afn_model.infer.monotone import median_filter, warp
from afn_model.network.speech_network import SpeechNetwork

Heads = Sequence[tuple[int, int]]  # (layer, head)
FILTER = 7  # frames of the median filter
FRAME = 0.02  # seconds of a frame; two are one where frames are pooled
SHORTLIST = 16  # heads that are tried together, the best by themselves
SETTINGS = "generation_config.json"
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_SPECIAL = r"<\|[^<>|\s]+\|>"  # such as <|speaker|>, which is a word of its own
_WORD = re.compile(rf"{_SPECIAL}|[{_UNSPACED}](?:(?!{_SPECIAL})[^\s\w])*|(?:(?![{_UNSPACED}]|{_SPECIAL})\S)+")


@dataclass(frozen=True)
class TimedWord:
    """A word with the punctuation around it, which has no part in its times.

    Args:
        text: without white space.
        start, end: seconds.
        tokens: of the text up to its end.
        spaced: whether a space stands before it.
    """

    text: str
    start: float
    end: float
    tokens: int
    spaced: bool


@dataclass(frozen=True)
class SpokenExample:
    """A recording whose words have known times.

    Args:
        frames: [F, audio width] as the decoder hears them.
        prompt, tokens: of the text, without the token that ends it.
        times: (start, end) of each word in seconds.
    """

    frames: Tensor
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    times: tuple[tuple[float, float], ...]


def default_heads(config: SpeechConfig) -> list[tuple[int, int]]:
    """All heads of the upper half of the layers."""
    return [(layer, head) for layer in range(config.layers // 2, config.layers) for head in range(config.heads)]


def alignment_heads(folder: str | Path, config: SpeechConfig) -> list[tuple[int, int]]:
    """The heads that generation_config.json of a folder names, or ``default_heads``.

    Raises:
        ValueError: something else than heads of this model.
    """
    file = Path(folder) / SETTINGS
    found = read_json(file).get("alignment_heads") if file.is_file() else None
    if found is None:
        return default_heads(config)
    if not isinstance(found, list) or not found or not all(_is_head(one, config) for one in found):
        told = f"[layer, head] of {config.layers} layers of {config.heads}"
        raise ValueError(f"{file}: alignment_heads must be a list of {told}, got {shown(found)}")
    return [(layer, head) for layer, head in found]


def save_heads(folder: str | Path, heads: Heads) -> None:
    """Writes them to generation_config.json, where transformers looks for them too; the rest of it stays."""
    file = Path(folder) / SETTINGS
    told = read_json(file) if file.is_file() else {}
    write_json(file, told | {"alignment_heads": [list(head) for head in heads]})


@torch.inference_mode()
def token_times(
    model: SpeechNetwork,
    frames: Tensor,
    cu_frames: Tensor,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    heads: Heads | None = None,
    *,
    open_begin: bool = True,
) -> list[np.ndarray]:
    """Seconds at which each token of N texts begins, and at which the last one ends: [tokens + 1] for each.

    The weights of one head and one text are held at a time, beside the sums over heads.

    Args:
        model: the encoder's decoder.
        frames, cu_frames: as ``SpeechNetwork.encode`` returns them.
        prompts: tokens before the texts.
        texts: without the token that ends them.
        heads: ``default_heads`` if None.
        open_begin: the first token may begin after the recording does.
    """
    heads = default_heads(model.config) if heads is None else heads
    sums: list[Any] = [0.0] * len(texts)

    def add(place: int, _: tuple[int, int], weights: Tensor) -> None:
        sums[place] = sums[place] + weights

    each_head(model, frames, cu_frames, prompts, texts, heads, add)
    return [_times(model, total / len(heads), open_begin) for total in sums]


@torch.inference_mode()
def each_head(
    model: SpeechNetwork,
    frames: Tensor,
    cu_frames: Tensor,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    heads: Heads,
    take: Callable[[int, tuple[int, int], Tensor], Any],
) -> None:
    """Calls ``take(text, (layer, head), weights [tokens + 1, frames])`` for every text and head; see ``token_times``.

    The last row of the weights is that which predicts the end of the text.
    """
    whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    bounds, edges = [0, *accumulate(map(len, whole))], cu_frames.tolist()
    wanted = {layer: [head for other, head in heads if other == layer] for layer, _ in heads}

    def watch(layer: int, q: Tensor, k: Tensor) -> None:
        for head in wanted.get(layer, ()):
            for place, (first, last) in enumerate(pairwise(bounds)):
                rows = q[first + len(prompts[place]) - 1 : last, head].float()
                heard = k[edges[place] : edges[place + 1], head].float()
                weights = (rows @ heard.T * rows.shape[-1] ** -0.5).softmax(-1)
                std, mean = torch.std_mean(weights, 0, correction=0)
                even = ((weights - mean) / std).nan_to_num(0.0, 0.0, 0.0)
                take(place, (layer, head), median_filter(even, FILTER))

    cu_text = torch.tensor(bounds, dtype=torch.int32, device=frames.device)
    tokens = torch.tensor([token for text in whole for token in text], device=frames.device)
    context = model.decoder.packed(frames, cu_text, cu_frames, len(tokens))
    model.decoder(tokens, replace(context, watch=watch))


def words_of(
    tokens: Sequence[int], times: Sequence[float] | np.ndarray, decode: Callable[[Sequence[int]], str]
) -> list[TimedWord]:
    """The words of a text: what stands between white space, and every character of a script without spaces.

    Tokens that only together are a character share their time, and so do the characters of a token.

    Args:
        tokens: of the text.
        times: [tokens + 1] seconds, as of ``token_times``.
        decode: text of token ids.
    """
    text, spans, first = "", list[tuple[float, float, int]](), 0  # of each character: start, end, tokens
    for count in range(1, len(tokens) + 1):
        longer = decode(tokens[:count])
        if longer.endswith("\ufffd") and count < len(tokens):
            continue  # a character is not whole
        same = next((at for at, pair in enumerate(zip(text, longer, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(text), len(longer)) if same is None else same  # below len(text) where a decoder cleans up
        added, spans = longer[same:], spans[:same]
        spoken, past = len(added) - sum(map(str.isspace, added)), 0
        start, length = float(times[first]), float(times[count] - times[first])
        for character in added:
            share = not character.isspace()
            ends = start + length * (past + share) / max(1, spoken)
            spans.append((start + length * past / max(1, spoken), ends, count))
            past += share
        text, first = longer, count
    found = []
    for match in _WORD.finditer(text):
        places = range(*match.span())
        core = [place for place in places if text[place].isalnum()] or places
        spaced = text[match.start() - 1].isspace() if match.start() else is_spaced(match[0])
        found.append(TimedWord(match[0], spans[core[0]][0], spans[core[-1]][1], spans[match.end() - 1][2], spaced))
    return found


def is_spaced(text: str) -> bool:
    """Whether a space belongs before a text: not where it begins in a script without them."""
    return not re.match(f"[{_UNSPACED}]", text)


def pick_heads(
    model: SpeechNetwork, examples: Sequence[SpokenExample], decode: Callable[[Sequence[int]], str], most: int = 8
) -> tuple[list[tuple[int, int]], float]:
    """The heads whose average gives the least median error of starts and ends, and this error in seconds.

    The best head by itself comes first; then, of the ``SHORTLIST`` best, whichever makes the error smallest, as long as
    it becomes smaller.

    Args:
        model: the encoder's decoder.
        examples: recordings with known words.
        decode: text of token ids.
        most: heads at most.

    Raises:
        ValueError: no examples, or one whose text has another number of words than times.
    """
    if not examples:
        raise ValueError("no examples to pick heads by")
    every = [(layer, head) for layer in range(model.config.layers) for head in range(model.config.heads)]

    def weights_of(heads: Heads) -> dict[tuple[int, int], list[np.ndarray]]:
        found: dict[tuple[int, int], list[np.ndarray]] = {head: [] for head in heads}
        for one in examples:
            edges = torch.tensor([0, len(one.frames)], dtype=torch.int32, device=one.frames.device)
            keep = lambda _, head, rows: found[head].append(rows.cpu().numpy())  # noqa: E731
            each_head(model, one.frames, edges, [one.prompt], [one.tokens], heads, keep)
        return found

    def error(matrices: Sequence[np.ndarray]) -> float:
        wrong = list[float]()
        for number, (one, matrix) in enumerate(zip(examples, matrices, strict=True)):
            words = words_of(one.tokens, _times(model, torch.from_numpy(matrix)), decode)
            if len(words) != len(one.times):
                raise ValueError(f"example {number}: {len(words)} words in its text but {len(one.times)} times")
            for word, (start, end) in zip(words, one.times, strict=True):
                wrong += [abs(word.start - start), abs(word.end - end)]
        return float(np.median(wrong)) if wrong else 0.0

    alone = {head: error(weights_of([head])[head]) for head in every}
    weights = weights_of(sorted(every, key=lambda head: (alone[head], head))[:SHORTLIST])
    chosen, least = list[tuple[int, int]](), float("inf")
    total: list[Any] = [0.0] * len(examples)
    while len(chosen) < min(most, len(weights)):
        tried = [
            (error([(old + new) / (len(chosen) + 1) for old, new in zip(total, own, strict=True)]), head)
            for head, own in weights.items()
            if head not in chosen
        ]
        best, head = min(tried)
        if best >= least:
            break
        chosen, least = [*chosen, head], best
        total = [old + new for old, new in zip(total, weights[head], strict=True)]
    return chosen, least


def _times(model: SpeechNetwork, weights: Tensor, open_begin: bool = True) -> np.ndarray:
    return warp(-weights.double().cpu().numpy(), open_begin=open_begin) * (FRAME * (1 + model.config.pooled))


def _is_head(one: Any, config: SpeechConfig) -> bool:
    if not isinstance(one, list) or [type(number) for number in one] != [int, int]:
        return False
    return 0 <= one[0] < config.layers and 0 <= one[1] < config.heads
