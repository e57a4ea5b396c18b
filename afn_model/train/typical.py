"""What a plan takes for a micro-batch: of memory the longest recordings that a stage reads, of time a mix of clips."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from afn_model.train.account import BatchShape, windows_of
from afn_model.train.curriculum import Stage
from afn_model.train.dpo import DPOSettings
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.rates import Rates

PER_SECOND, QUESTION = 25, 64  # audio tokens of a second; text tokens of a conversation about a long recording
PREFERRED = 512  # tokens of an answer in DPO, assumed
COUNTED = 0.5  # share of the text that is in the loss, assumed
BINS = 15


def mix(clips: int, context: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[clips] audio and text tokens of clips that fit the context.

    55 % of clips are 1 to 30 s, 25 % 10 s, 15 % 30 s to 5 min and 5 % 5 to 30 min, the last two log-uniform; 25 tokens
    a second and log-normal text.
    """
    random, audio, text = np.random.default_rng(seed), np.empty(0, np.int64), np.empty(0, np.int64)
    while len(audio) < clips:
        kind = random.choice(4, clips, p=[0.55, 0.25, 0.15, 0.05])
        middle, long = (np.exp(random.uniform(*np.log(ends), clips)) for ends in ((30, 300), (300, 1800)))
        seconds = np.choose(kind, [random.uniform(1, 30, clips), np.full(clips, 10.0), middle, long])
        words = np.minimum(20 + np.exp(random.normal(4.6, 0.8, clips)), 2000).astype(np.int64)
        sound = np.ceil(25 * seconds).astype(np.int64)
        fits = sound + words <= context
        audio, text = np.concatenate((audio, sound[fits])), np.concatenate((text, words[fits]))
    return audio[:clips], text[:clips]


def longest(stage: Stage) -> BatchShape:
    """The micro-batch that takes most memory: recordings as long as they may be, one after another."""
    audio = int(stage.max_audio * PER_SECOND)
    if not stage.packed:
        return _answered(stage, audio, 1.0)
    lengths, texts, frames, supervised, left = [], [], [], 0, stage.context
    while left:
        heard = max(min(audio, left - QUESTION), 0)
        said = min(QUESTION, left - heard)
        lengths.append(heard + said)
        texts.append(said)
        frames += windows_of(heard)
        supervised += said // 2
        left -= heard + said
    return BatchShape(tuple(lengths), tuple(frames), supervised, texts=tuple(texts))


def _answered(stage: Stage, audio: int, share: float) -> BatchShape:
    """A prompt with its answers, a ``share`` of the longest; at share 1 other prompts fill the pass."""
    if stage.method == "dpo":
        number, tokens, budget = 2, PREFERRED, DPOSettings(**stage.dpo).pass_tokens
    else:
        settings = GRPOSettings(**stage.grpo)
        number, tokens, budget = settings.group, settings.max_new_tokens, settings.pass_tokens
    prompt = min(audio + QUESTION, stage.context - 1)
    tokens = max(int(share * tokens), 2)
    lengths = [prompt, *[tokens - 1] * number]
    room = (budget or stage.context) - sum(lengths)
    if share == 1.0 and room > 0:
        lengths.append(room)
    return BatchShape(tuple(lengths), windows_of(max(prompt - QUESTION, 0)), number * tokens, number)


@lru_cache(maxsize=64)
def _packed(context: int, most: int, mean: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Audio and text tokens of a packed sequence: of several the one of median Σ length²."""
    audio, text = mix(max(4000, BINS * context // 100), 1 << 30)
    audio = np.minimum(audio, most)
    if mean:
        factor = mean / float((audio + text).mean())
        audio, text = ((np.maximum(x * factor, 1)).astype(np.int64) for x in (audio, text))
        audio = np.minimum(audio, most)
    text = np.minimum(text, min(context, words or context))
    audio = np.minimum(audio, context - text)
    found, clip = [], 0
    for _ in range(BINS):
        room, chosen, refused = context, [], 0
        while refused < 100 and room:
            if audio[clip] + text[clip] <= room:
                chosen.append(clip)
                room -= audio[clip] + text[clip]
            else:
                refused += 1
            clip = (clip + 1) % len(audio)
        found.append(chosen)
    found.sort(key=lambda some: int(((audio[some] + text[some]) ** 2).sum()))
    middle = found[BINS // 2]
    return audio[middle], text[middle]


def typical(stage: Stage, rates: Rates, mean: float = 0.0, words: int = 0) -> BatchShape:
    """The micro-batch whose time is forecast.

    Args:
        stage: its context and longest recording.
        rates: has the share of the longest answer that answers take.
        mean: tokens of the data's mean sample, to which the mix's clips are scaled; 0 takes them as they are.
        words: tokens of the longest text that the model takes; 0 for one that ends with the context.
    """
    most = int(stage.max_audio * PER_SECOND)
    if not stage.packed:
        audio, _ = mix(4000, 1 << 30)
        return _answered(stage, int(np.minimum(audio, most).mean()), min(rates.answer, 0.99))
    audio, text = _packed(stage.context, most, round(mean), words)
    frames = [frames for one in audio.tolist() for frames in windows_of(one)]
    lengths, texts = tuple((audio + text).tolist()), tuple(text.tolist())
    return BatchShape(lengths, tuple(frames), int(COUNTED * text.sum()), texts=texts)
