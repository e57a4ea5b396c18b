"""How exact the times of words are that a small speech model's cross-attention gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median

import torch

from afn_model.afwhisper import AFWhisper
from afn_model.data.plan import question
from afn_model.data.records import parse_sample
from afn_model.infer.word_times import SpokenExample, pick_heads, token_times, words_of
from afn_model.prompt.processor import AFNextProcessor

TOGETHER = 32


@torch.inference_mode()
def spoken(model: AFWhisper, processor: AFNextProcessor, records: Sequence[dict], folder: Path) -> list[SpokenExample]:
    """Records of one talker as the decoder hears them, with their words and when those are said."""
    found = []
    for first in range(0, len(records), TOGETHER):
        some = records[first : first + TOGETHER]
        prepared = [processor.prepare(question(parse_sample(record, folder).turns)) for record in some]
        frames, cu_frames = model.heard(model.prepare(processor.pack(prepared, ragged=True)))
        for place, (record, one) in enumerate(zip(some, prepared, strict=True)):
            prompt = tuple(one.ids[one.ids != processor.sound_id].tolist())
            tokens = tuple(processor.tokenizer.encode(record["truth"]["answer"], add_special_tokens=False).ids)
            times = tuple((event["start"], event["end"]) for event in record["events"])
            own = frames[int(cu_frames[place]) : int(cu_frames[place + 1])].clone()
            found.append(SpokenExample(own, prompt, tokens, times))
    return found


def time_errors(
    model: AFWhisper, processor: AFNextProcessor, learnt: Sequence[SpokenExample], asked: Sequence[SpokenExample]
) -> dict:
    """Median errors in seconds of starts and ends of words in ``asked``, by the heads that are best for ``learnt``.

    ``within`` is the share of both that are within 0.1 s.
    """
    heads, _ = pick_heads(model, learnt, processor.decode)
    starts, ends = list[float](), list[float]()
    for first in range(0, len(asked), TOGETHER):
        some = asked[first : first + TOGETHER]
        edges = torch.tensor([0, *accumulate(len(one.frames) for one in some)], dtype=torch.int32)
        frames, texts = torch.cat([one.frames for one in some]), [one.tokens for one in some]
        for one, times in zip(
            some, token_times(model, frames, edges, [one.prompt for one in some], texts, heads), strict=True
        ):
            for word, (start, end) in zip(words_of(one.tokens, times, processor.decode), one.times, strict=True):
                starts.append(abs(word.start - start))
                ends.append(abs(word.end - end))
    if not starts:
        return {"words": 0}
    return {
        "start": round(median(starts), 4),
        "end": round(median(ends), 4),
        "within": round(sum(error <= 0.1 for error in starts + ends) / (2 * len(starts)), 4),
        "words": len(starts),
        "heads": [list(head) for head in heads],
    }
