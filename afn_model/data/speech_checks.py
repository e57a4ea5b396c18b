"""What a speech decoder cannot learn from. Reasons begin with one of five names, by which ``bad.jsonl`` counts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import NO_SPEECH, TOKEN, SpeechTask, is_code

QUIET = 1e-3  # of full scale, −60 dBFS: a recording whose peak is below it is silence


def check_texts(turns: Sequence[Turn], tokens: int, processor: AFNextProcessor) -> None:
    """Whether the texts of a conversation can be learnt, before its recordings are read.

    Args:
        turns: of the conversation.
        tokens: of its text, beside the audio.
        processor: of a speech decoder.

    Raises:
        ValueError: a language or another special token that the tokenizer has not, a text that the decoder has no
            positions for, recordings with an empty answer that is not ``<|nospeech|>``.
    """
    for turn in turns:
        for name in TOKEN.findall(turn.text):
            if processor.tokenizer.token_to_id(f"<|{name}|>") is None:
                raise ValueError(f"{'language' if is_code(name) else 'name'} without a token: <|{name}|>")
    limit = processor.text_positions
    if limit is not None and tokens > limit:
        raise ValueError(f"text longer than the decoder's context: {tokens} tokens, {limit} positions")
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    sounds = any(turn.audios for turn in turns)
    if sounds and any(not has_words(text) and NO_SPEECH not in text for text in answers):
        raise ValueError(f"sound with an empty text: {NO_SPEECH} says that nobody speaks")


def check_sound(turns: Sequence[Turn], clips: Sequence[Tensor]) -> None:
    """Whether something is to be heard where something is said; captions may be about silence.

    Args:
        turns: of the conversation.
        clips: [samples] of each of its recordings, float32 or int16.

    Raises:
        ValueError: a recording whose peak is below −60 dBFS, and an answer with words.
    """
    if not any(turn.role == "assistant" and has_words(turn.text) for turn in turns):
        return
    try:
        if SpeechTask.read("".join(turn.text for turn in turns if turn.role == "user")).task == "caption":
            return
    except ValueError:  # asked in words
        pass
    for number, clip in enumerate(clips, 1):
        found = peak(clip)
        if found < QUIET:
            level = f"{20 * math.log10(found):.0f} dBFS" if found else "0"
            raise ValueError(f"silence with text: the peak of recording {number} of {len(clips)} is {level}")


def has_words(text: str) -> bool:
    """Whether a text has anything but special tokens."""
    return bool(TOKEN.sub("", text).strip())


def peak(clip: Tensor) -> float:
    """The largest magnitude of samples, of full scale."""
    if not clip.numel():
        return 0.0
    low, high = (float(one) for one in torch.aminmax(clip))
    return max(-low, high) / (1 if clip.is_floating_point() else 32_768)
