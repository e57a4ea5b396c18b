"""Tasks as tokens, and back; tokens that a tokenizer has not."""

from itertools import product

import pytest
import torch

from afn_model.audio.recording import Audio
from afn_model.prompt.conversation import Turn
from afn_model.prompt.speech_task import (
    SPEAKER,
    TASKS,
    SpeechTask,
    add_task_tokens,
    special_tokens,
    time_token,
    with_task,
)
from tests import tiny


def test_the_spellings_are_whispers():
    assert SpeechTask().tokens == ("<|en|>", "<|transcribe|>", "<|notimestamps|>")
    assert SpeechTask("translate", "haw", timestamps=True).text == "<|haw|><|translate|>"
    tokens = special_tokens(["en", "de", "en"])
    assert len(tokens) == len(set(tokens)) == 1 + 2 + 5 + 2 + 1 + 1501
    assert (tokens[-1501], tokens[-1500], tokens[-1]) == ("<|0.00|>", "<|0.02|>", "<|30.00|>")
    assert [time_token(seconds) for seconds in (0.0, 1.233, 29.991)] == ["<|0.00|>", "<|1.24|>", "<|30.00|>"]


def test_a_prompt_tells_its_task():
    for task, language, timestamps in product(TASKS, ("en", "yue"), (True, False)):
        one = SpeechTask(task, language, timestamps)
        assert SpeechTask.read(f"<sound><|startoftranscript|>{one.text} Paris<|transcribe|>") == one


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: SpeechTask("sing"), r"task 'sing' is none of transcribe, translate"),
        (lambda: SpeechTask(language="English"), "language 'English' is no code of two or three small letters"),
        (lambda: SpeechTask(language=None), "language None is no code"),  # type: ignore[arg-type]
        (lambda: SpeechTask.read("<|en|><|sing|>"), "task 'sing' is none"),
        (lambda: SpeechTask.read("Transcribe <|en|>."), "no task in 'Transcribe"),
        (lambda: special_tokens(["en", "<|"]), "is no code"),
        (lambda: time_token(30.02), "30.02 s has no token"),
        (lambda: time_token(float("nan")), "a time must be a finite number"),
    ],
)
def test_what_is_no_task(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_a_tokenizer_gets_each_token_once():
    tokenizer = tiny.tokenizer()
    with pytest.raises(ValueError, match=r"language en: the tokenizer has no token <\|en\|>"):
        SpeechTask().check(tokenizer)
    assert add_task_tokens(tokenizer, ["en"], times=False) == 10
    assert add_task_tokens(tokenizer, ["en", "de"]) == 1 + 1501
    SpeechTask("target", "de").check(tokenizer)
    with pytest.raises(ValueError, match=r"language fr: the tokenizer has no token <\|fr\|>"):
        SpeechTask(language="fr").check(tokenizer)
    said = f"hello {SPEAKER} good morning<|0.50|>"
    ids = tokenizer.encode(SpeechTask().text + said, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == said


def test_a_recording_without_a_question_gets_a_task():
    tokenizer, sound = tiny.tokenizer(), Audio(torch.zeros(16_000))
    turns = [Turn("user", (sound, " "))]
    assert with_task(turns, tokenizer) == turns  # which has no such tokens
    add_task_tokens(tokenizer, ["en", "de"], times=False)
    assert with_task(turns, tokenizer) == [Turn("user", (sound, SpeechTask().text))]
    assert with_task(turns, tokenizer, SpeechTask(language="fr")) == turns
    for other in ([Turn("user", (sound, "Who?"))], [Turn("user", ("",))], [*turns, Turn("assistant", ("No.",))]):
        assert with_task(other, tokenizer) == other
