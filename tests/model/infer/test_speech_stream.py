"""Streams against recordings that are there at once, with a perfect stand-in and one that changes its mind."""

import pytest
import torch

from afn_model.infer.long_speech import long_texts, said
from afn_model.infer.speech_stream import SpeechStream
from afn_model.infer.speech_writer import SpeechWriter, Written
from afn_model.infer.word_times import TimedWord
from tests.model.af_whisper import speech_model
from tests.model.infer.test_long_speech import SECOND, VOCABULARY, SpokenScript


class TokenScript(SpokenScript):
    """Its tokens are the words, a half word's another one's, so that texts begin alike where words are alike."""

    def __call__(self, windows, *, before=(), words=False):
        found = []
        for pcm in windows:
            one = self.heard(pcm)
            tokens = tuple(VOCABULARY.index(w.text) if w.text in VOCABULARY else -1 for w in one)
            assert tokens[: len(before)] == tuple(before)
            found.append(Written(said(one), tokens, tuple(one)))
        return found


def streamed(stream, pcm, size):
    settled = []
    for piece in pcm.split(size):
        settled += stream.push(piece)
        assert stream.words == settled
    return settled


@pytest.mark.parametrize(("pauses", "size"), [((), 7000), (((26, 26.6), (40, 41)), 16_000), (((25, 25.3),), 60_000)])
def test_the_text_is_that_of_the_recording_at_once(pauses, size):
    script = TokenScript(46, 5, pauses=pauses)
    stream = SpeechStream(script)
    settled = streamed(stream, script.pcm, size)
    # Words come while the recording does, and not long after they are said.
    assert len(settled) > len(script.words) * 0.8
    settled += stream.close()
    ((_, whole),) = long_texts(script, [("a", script.pcm)], words=True)
    assert said(settled) == whole.text == script.text
    assert [one.start for one in settled] == pytest.approx([start for _, start, _ in script.words], abs=1e-3)
    with pytest.raises(ValueError, match="has ended"):
        stream.push(script.pcm[:10])


def words_of(text):
    return tuple(TimedWord(word, n * 0.1, n * 0.1 + 0.1, n + 1, True) for n, word in enumerate(text.split()))


def test_a_word_is_settled_when_two_decodes_agree():
    texts = iter(["we", "we sat", "we sad on", "we sat on the", "we sat on the mat", "we sat on a mat today"])
    begun = []

    def write(windows, *, before=(), words=False):
        begun.append(before)
        text = next(texts)
        return [Written(text, tuple(map(hash, text.split())), words_of(text))]

    stream, piece = SpeechStream(write), torch.ones(SECOND)
    assert [said(stream.push(piece)) for _ in range(5)] == ["", "", "", "", "we sat on"]
    assert said(stream.pending) == "the mat"
    assert said(stream.close()) == "a mat today"
    assert said(stream.words) == "we sat on a mat today"
    assert [len(one) for one in begun] == [0, 0, 0, 0, 0, 3]


def test_what_a_stream_refuses():
    script = TokenScript(2, 0)
    with pytest.raises(ValueError, match="step must be"):
        SpeechStream(script, step=0)
    stream = SpeechStream(script)
    with pytest.raises(ValueError, match="no number or far beyond"):
        stream.push(torch.full((10,), float("nan")))
    with pytest.raises(ValueError, match="must be \\[n\\] float32 or int16"):
        stream.push(torch.zeros(2, 10))
    empty = SpeechStream(SpeechWriter(None, None, "What?"))
    with pytest.raises(ValueError, match="0 samples of audio are too few"):
        empty.close()


def test_a_model_hears_a_stream():
    """Random weights contradict themselves: the stream ends, and what is settled stays."""
    model, processor = speech_model(seed=5)
    pcm = 0.1 * torch.randn(4 * SECOND, generator=torch.Generator().manual_seed(1))
    stream = SpeechStream(SpeechWriter(model, processor, "What word do you hear?", most=8), step=1.5)
    settled = streamed(stream, pcm, 9000)
    assert stream.words == settled + stream.close()
    silent = SpeechStream(SpeechWriter(model, processor, "What word do you hear?", most=8))
    assert streamed(silent, torch.zeros(3 * SECOND), SECOND) == silent.close() == []
