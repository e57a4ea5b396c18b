"""A tiny model with random weights, and its processor."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.config import preset
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.template import DEFAULT_TEMPLATE
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.world.texts import basic_texts

# The released models' system prompt would be half of every prompt here.
SYSTEM = "Listen and answer."


def untrained(
    seed: int, words: list[str], vocabulary: int | None = None, **text: int
) -> tuple[AFNext, AFNextProcessor]:
    """A tiny model with random weights, other sizes of its language model given by name, and its processor.

    Args:
        seed: of the weights.
        words: texts that the tokenizer learns from.
        vocabulary: its size at most; by default that of the preset.
        text: fields of the language model's configuration.
    """
    torch.manual_seed(seed)
    tiny = preset("tiny")
    tokenizer = make_tokenizer(words, vocabulary or tiny.text.vocab_size)
    template = re.sub(r"You are Audio Flamingo-Next[^<]*", SYSTEM, DEFAULT_TEMPLATE.read_text("utf-8"))
    processor = AFNextProcessor(tokenizer, chat_template=template, max_positions=tiny.text.max_positions)
    config = replace(
        tiny,
        text=replace(tiny.text, vocab_size=tokenizer.get_vocab_size(), **text),
        audio_token_id=processor.token_id("<sound>"),
        audio_bos_token_id=processor.token_id("<|sound_bos|>"),
        audio_eos_token_id=processor.token_id("<|sound_eos|>"),
        stop_token_ids=(processor.token_id("<|im_end|>"), processor.token_id("<|endoftext|>")),
        repetition_penalty=1.0,
    )
    return AFNext(config), processor


def build(seed: int, heard: AFWhisper | None = None) -> tuple[AFNext, AFNextProcessor]:
    """A tiny model with random weights, and a processor whose tokenizer covers the texts of the three basic tasks.

    Its encoder may be another model's.

    Raises:
        ValueError: that encoder has another width than the adaptor takes.
    """
    model, processor = untrained(seed, [*basic_texts(), SYSTEM, SYSTEM, "system", "user", "assistant"] * 2)
    if heard is not None:
        own, other = model.config.audio, heard.config.audio
        if own.width != other.width:
            raise ValueError(f"the encoder is {other.width} wide; {own.width} is expected")
        torch.manual_seed(seed)
        model = AFNext(replace(model.config, audio=other))
        model.encoder.load_state_dict(heard.encoder.state_dict())
    return model, processor
