"""A model folder opened for questions."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from afn_model import AFNext, AFNextProcessor, ModelConfig, SamplingParams, Session
from afn_model.infer.answer import answer
from afn_model.infer.speech_answer import speech_answers
from tests.model.af_whisper import said, speech_model
from tests.model.infer.test_generate import asked, conversations
from tests.tiny import noise, record, save_tiny

SHORT = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_a_session_answers_as_its_model_and_processor_do(folder):
    model, processor = AFNext.from_pretrained(folder), AFNextProcessor.from_pretrained(folder)
    pieces = []
    options = {"batch_size": 4, "on_text": lambda i, text: pieces.append((i, text))}
    found = Session(folder).answer(conversations(), SHORT, **options)
    assert [one.text for one in found] == [one.text for one in answer(model, processor, conversations(), SHORT)]
    assert ["".join(text for i, text in pieces if i == k) for k in range(6)] == [one.text for one in found]


def test_weights_are_read_once_and_after_the_recordings(folder):
    steps = []
    session = Session(str(folder), on_step=lambda *step: steps.append(step))
    with pytest.raises(ValueError, match=r"nowhere\.wav: no such file"):
        session.answer([asked_about("nowhere.wav")], SHORT)
    assert not steps
    (first,) = session.answer([asked("What is said?")], SHORT)
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    assert 0 < first.seconds["load"] < first.seconds["total"]
    read = len(steps)
    (again,) = session.answer([asked("What is said?")], SHORT)
    assert len(steps) == read
    assert again.text == first.text
    assert again.seconds["load"] < first.seconds["load"]
    assert not session.model.lm_head.weight.is_inference()


def test_a_session_gives_errors_in_the_place_of_answers(folder):
    found = dict(Session(folder).answers([asked("What is said?"), asked_about("nowhere.wav")], SHORT))
    assert found[0].text == Session(folder).answer(asked("What is said?"), SHORT)[0].text
    assert str(found[1]) == "nowhere.wav: no such file"


def test_threads_that_ask_at_once_get_one_model(folder):
    steps = []
    session = Session(folder, on_step=lambda *step: steps.append(step))
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: session.model, range(4)))
    assert all(model is session.model for model in models)
    assert len(steps) == steps[-1][1]


def asked_about(file: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "audio", "path": file}, {"type": "text", "text": "?"}]}]


def test_what_a_session_is_opened_with(folder, tmp_path):
    session = Session(folder, dtype=torch.bfloat16, device="cpu", rote="paper", strict=True)
    assert session.model.dtype == torch.bfloat16
    assert session.model.config.rote.reading == "paper"
    assert session.processor.strict
    assert len(session.answer([asked("What is said?", noise(0.5))], SHORT)) == 1
    session.processor.max_seconds = 1
    with pytest.raises(ValueError, match="longer than 1 s"):
        session.answer([asked_about(record(tmp_path / "long.wav", 1.5))], SHORT)


def test_a_session_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Session(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "foo"}, "device 'foo'"),
        ({"device": "meta"}, "device meta"),
        ({"device": None}, "device None"),
        ({"dtype": torch.int32}, r"dtype torch\.int32: weights are floating point"),
        ({"dtype": "float32"}, "dtype float32: weights are floating point"),
    ],
)
def test_a_session_of_another_device_or_dtype(folder, options, problem):
    with pytest.raises(ValueError, match=problem):
        Session(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_session_without_the_gpu_it_asks_for(folder):
    with pytest.raises(ValueError, match="device cuda: PyTorch finds no GPU"):
        Session(folder, device="cuda")


def test_the_former_name_of_the_config():
    with pytest.warns(DeprecationWarning, match="Config is now called ModelConfig"):
        from afn_model import Config
    assert Config is ModelConfig


def test_a_session_with_the_speech_decoder(tmp_path):
    model, processor = speech_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    talks, session = [said("", 1.0)[:1], said("", 2.0, seed=1)[:1]], Session(tmp_path)
    expected = [one.text for _, one in sorted(speech_answers(model, processor, talks, SHORT), key=lambda one: one[0])]
    pieces = []
    found = session.answer(talks, SHORT, on_text=lambda i, text: pieces.append((i, text)))
    assert [one.text for one in found] == expected
    assert sorted(pieces) == list(enumerate(expected))
    with pytest.raises(ValueError, match=r"nowhere\.wav: no such file"):
        session.answer([asked_about("nowhere.wav")], SHORT)
