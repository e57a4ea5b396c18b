"""What a window gives: word times, silence, what is refused, and texts that go round in circles."""

from dataclasses import replace

import pytest
import torch

from afn_model.infer import speech_writer
from afn_model.infer.speech_decode import Hypothesis
from afn_model.infer.speech_writer import SpeechWriter, compression, loop_start
from tests.model.af_whisper import speech_model

QUESTION = "What word do you hear?"


def noise(seconds, seed=0):
    return 0.1 * torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


def test_windows_alone_and_together():
    model, processor = speech_model(seed=5)
    write = SpeechWriter(model, processor, QUESTION, most=12)
    windows = [noise(1.0), torch.zeros(16_000), noise(0.01), noise(2.5, 1)]
    found = write(windows, words=True)
    assert (found[1].text, found[1].tokens) == ("", ())
    assert str(found[2]) == "160 samples of audio are too few for a token"
    for pcm, one in zip(windows[::3], found[::3], strict=True):
        assert [one] == write([pcm], words=True)
        assert one.text.split() == [word.text for word in one.words] != []
        times = [at for word in one.words for at in (word.start, word.end)]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= len(pcm) / 16_000 + 0.02
    begun = write(windows[:1], before=found[0].tokens[:4])[0]
    assert begun.tokens[:12] == found[0].tokens


def test_what_a_text_never_says_and_does_not_begin_with():
    model, processor = speech_model(seed=5)
    free_config = model.config
    write = SpeechWriter(model, processor, QUESTION, most=12)
    (free,) = write([noise(1.0)])
    first = free.tokens[0]
    model.config = replace(free_config, suppressed_ids=(first,))
    assert first not in write([noise(1.0)])[0].tokens
    model.config = replace(free_config, suppressed_first_ids=(first,))
    (held,) = write([noise(1.0)])
    assert held.tokens[0] != first
    (behind,) = write([noise(1.0)], before=free.tokens[:1])  # the first token stands there already
    assert behind.tokens[:12] == free.tokens


def test_bad_settings():
    with pytest.raises(ValueError, match="beams must be at least 1, got 0"):
        SpeechWriter(None, None, QUESTION, beams=0)
    with pytest.raises(ValueError, match="length_penalty must be a number, got nan"):
        SpeechWriter(None, None, QUESTION, length_penalty=float("nan"))


def test_a_loop_is_looked_for_again(monkeypatch):
    model, processor = speech_model()
    fine, start, rounds = (
        tuple(processor.tokenizer.encode(text, add_special_tokens=False).ids)
        for text in ("fine", "one two", " three four" * 30)
    )
    loop = start + rounds
    assert compression(processor.decode(loop)) > 2.4
    answers, calls = [], []

    def decode(_, frames, cu_frames, prompts, *, beams, **__):
        calls.append((beams, cu_frames.tolist()))
        return [Hypothesis(answers.pop(0), -1.0, -1.0, True) for _ in prompts]

    monkeypatch.setattr(speech_writer, "decode", decode)
    windows = [noise(1.0), noise(2.0)]
    for second, text, finish in ((fine, "fine", "stop"), (loop, "one two", "repetition")):
        answers += [fine, loop, second]
        found = SpeechWriter(model, processor, QUESTION)(windows, words=True)
        assert [(one.text.strip(), one.finish, one.again) for one in found] == [
            ("fine", "stop", False), (text, finish, True),
        ]  # fmt: skip
        first, again = calls
        assert first[0] == 1
        assert again == (5, [0, first[1][2] - first[1][1]])
        calls.clear()
    answers += [fine, loop]
    (_, one) = SpeechWriter(model, processor, QUESTION, beams=5)(windows)
    assert (one.finish, one.again, len(calls)) == ("repetition", False, 1)


def test_where_a_loop_begins():
    assert loop_start([1, 2, 3, 4, 3, 4, 3, 4, 3]) == 2
    assert loop_start([5, 5, 5, 5]) == loop_start([]) == loop_start([1, 2, 1, 2]) == 0
    assert loop_start([9, 1, 1, 1]) == 1
    assert compression("") == 0
