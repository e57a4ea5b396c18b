"""Records that a speech decoder cannot learn from are left out by name, and others' models take them as before."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch

from afn_model.data.index import build
from afn_model.data.loader import DataConfig, Loader
from afn_model.prompt.batch import IGNORED
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import SpeechTask, add_task_tokens
from afn_model.prompt.template import WHISPER_TEMPLATE
from tests import tiny

POSITIONS = 40
ENGLISH, CAPTION, TARGET = (SpeechTask(task).text for task in ("transcribe", "caption", "target"))
RECORDS = {
    "good": (["tone"], ENGLISH, "One two three."),
    "words": (["tone"], "What is said?", "One two three."),
    "target": (["enrolment", "tone"], TARGET, "One two three."),
    "nobody": (["silent"], ENGLISH, "<|nospeech|>"),
    "quiet": (["silent"], CAPTION, "One two three."),
    "german": (["tone"], SpeechTask(language="de").text, "One two three."),
    "times": (["tone"], ENGLISH, "<|0.00|>One two three."),
    "long": (["tone"], ENGLISH, "0123456789" * 4),
    "silence": (["silent"], ENGLISH, "One two three."),
    "unheard": (["silent", "tone"], TARGET, "One two three."),
    "empty": (["tone"], ENGLISH, "<|speaker|> "),
}
REASONS = {
    "german": "language without a token: <|de|>",
    "times": "name without a token: <|0.00|>",
    "long": f"text longer than the decoder's context: 45 tokens, {POSITIONS} positions",
    "silence": "silence with text: the peak of recording 1 of 1 is -66 dBFS",
    "unheard": "silence with text: the peak of recording 1 of 2 is -66 dBFS",
    "empty": "sound with an empty text: <|nospeech|> says that nobody speaks",
}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads the micro-batches that a loader makes of the records, for a processor with options."""
    folder = tmp_path_factory.mktemp("checks")
    for name, rate, hertz, level in (
        ("tone", 44_100, 500, 0.3),
        ("enrolment", 8_000, 250, 0.3),
        ("silent", 16_000, 500, 5e-4),
    ):
        wave = level * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
        soundfile.write(folder / f"{name}.wav", wave, rate)
    path, lines = folder / "records.jsonl", []
    for name, (clips, asked, answer) in RECORDS.items():
        said = [{"role": "user", "content": "<sound>" * len(clips) + asked}, {"role": "assistant", "content": answer}]
        audios = [{"path": f"{clip}.wav"} for clip in clips]
        lines.append(json.dumps({"id": name, "audios": audios, "duration": [1.0] * len(clips), "messages": said}))
    path.write_text("\n".join(lines) + "\n")
    build(path)
    config = DataConfig({"r": path}, {"r": 1}, seed=0, context=600, bins=1, max_seconds=30.0, chunk=16, bad_share=1.0)

    def made(**options):
        tokenizer = tiny.tokenizer()
        add_task_tokens(tokenizer, ["en"], times=False)
        template = {"chat_template": WHISPER_TEMPLATE.read_text(), "boundaries": False, "pcm_dtype": torch.int16}
        loader = Loader(config, AFNextProcessor(tokenizer, **template, **options))
        steps = itertools.takewhile(lambda step: step.seen <= len(RECORDS), loader)
        return loader.processor, [micro for step in steps for micro in step.micro]

    return made


def test_each_is_left_out_by_name(read):
    _, micro = read(text_positions=POSITIONS)
    bad = {list(RECORDS)[int(name[2:-1])]: reason for one in micro for name, reason in one.bad}
    assert bad == REASONS
    assert {sample.id for one in micro for sample in one.samples} == set(RECORDS) - set(REASONS)


def test_another_model_takes_what_it_took(read):
    _, micro = read()
    assert sum(len(one.samples) for one in micro) == len(RECORDS)


def test_recordings_of_any_rate_are_heard_at_16_khz(read):
    processor, found = read(text_positions=POSITIONS)
    micro = next(one for one in found if "target" in [sample.id for sample in one.samples])
    place = [sample.id for sample in micro.samples].index("target")
    first, last = micro.batch.cu_seqlens[place : place + 2].tolist()
    ids, labels = micro.batch.input_ids[first:last], micro.batch.labels[first:last]
    assert (ids == processor.sound_id).sum() == 2 * 25
    answer = processor.tokenizer.encode("One two three.<|endoftext|>").ids
    assert labels[labels != IGNORED].tolist() == answer
    windows = micro.batch.pcm.split(micro.batch.samples.tolist())
    clip = sum(len(RECORDS[sample.id][0]) for sample in micro.samples[:place])
    for window, hertz in zip(windows[clip : clip + 2], (250, 500), strict=True):
        assert len(window) == 16_000
        assert torch.fft.rfft(window.double()).abs().argmax() == hertz
