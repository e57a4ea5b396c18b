"""The speech decoder where conversations are answered: the same text alone and among others."""

import pytest
import torch

from afn_model.afwhisper import AFWhisper
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.speech_answer import speech_answers
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import SpeechTask
from tests.model.af_whisper import said, speech_model, whisper_folder

PARAMS = SamplingParams(max_new_tokens=12)


def asked(*seconds, seed=0):
    return said("", *seconds, seed=seed)[:1]


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_alone_and_among_others(beams):
    model, processor = speech_model(seed=3)
    talks = [asked(1.0), asked(31.5, seed=1), asked(0.5, 0.7, seed=2), asked(2.0, seed=4)]
    options = {"batch_size": 3, "beams": beams}
    together = dict(speech_answers(model, processor, talks, PARAMS, **options))
    assert sorted(together) == [0, 1, 2, 3]
    for place, talk in enumerate(talks):
        ((_, alone),) = speech_answers(model, processor, [talk], PARAMS, **options)
        assert together[place].text == alone.text
    assert together[0].prompt_tokens > 25
    assert len({one.text for one in together.values()}) > 1


def test_errors_stand_in_their_places(tmp_path):
    model, processor = speech_model()
    lost = [{"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "x.wav")}]}]
    silent = [{"role": "user", "content": "Hello?"}]
    found = dict(speech_answers(lambda: model, processor, [lost, asked(1.0), silent], PARAMS))
    assert "x.wav" in str(found[0])
    assert found[1].finish in ("stop", "length")
    assert str(found[2]) == "conversation 2: no recording to write down"
    with pytest.raises(ValueError, match="temperature 0 and one answer"):
        list(speech_answers(model, processor, [asked(1.0)], SamplingParams(temperature=0.5)))


def test_whispers_own_folder_writes_what_transformers_writes(tmp_path):
    transformers = pytest.importorskip("transformers")
    whisper_folder(tmp_path / "theirs", seed=2)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    reader = transformers.WhisperProcessor.from_pretrained(tmp_path / "theirs")
    clips = [0.1 * torch.randn(length, generator=torch.Generator().manual_seed(7)) for length in (32_000, 480_000)]
    features = reader([clip.numpy() for clip in clips], sampling_rate=16_000, return_tensors="pt").input_features
    for name in ("theirs", "again"):
        model, processor = AFWhisper.from_pretrained(tmp_path / name), AFNextProcessor.from_pretrained(tmp_path / name)
        texts = []
        for task in (SpeechTask(), SpeechTask("translate", "de")):
            talks = [ask(clip, task.text) for clip in clips]
            found = dict(speech_answers(model, processor, talks, SamplingParams(max_new_tokens=12)))
            told = {"language": task.language, "task": task.task, "max_new_tokens": 12}
            expected = reader.batch_decode(theirs.generate(features, **told), skip_special_tokens=True)
            assert [found[place].text for place in (0, 1)] == [one.strip() for one in expected]
            texts += expected
        assert len(set(texts)) > 1
        model.save_pretrained(tmp_path / "again")
        processor.save_pretrained(tmp_path / "again")


def ask(clip, text):
    return [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": text}]}]
