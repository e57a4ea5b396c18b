"""Captions in the place of recordings: asked for once, all at the same time; the conversation is text from then on."""

import asyncio

import pytest
import torch

from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Audio, Turn
from afn_model.prompt.questions import DETAILED_CAPTION
from afn_model.serve.caption_cache import Caption, CaptionCache
from afn_model.serve.captions import TOGETHER, CaptionRequest, read_caption_request, with_captions
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from tests.model.serve.scripted import TEXT_TOKENS, Script, always
from tests.model.serve.serving import in_process, tiny_server
from tests.tiny import noise


@pytest.fixture
def server():
    return tiny_server(max_new_tokens=7)


def recording(id, seconds):
    return Recording(id, torch.from_numpy(noise(seconds)).float())


def turns_about(*recordings):
    audios = [Audio(one.pcm) for one in recordings]
    return [
        Turn("system", ("Be brief.",)),
        Turn("user", (*audios, "What is louder?")),
        Turn("assistant", ("The first.",)),
        Turn("user", (Audio(recordings[0].pcm), "And now?")),
    ]


def test_a_conversation_becomes_text(server):
    both = asyncio.Event()

    async def answer(question):
        if len(told.asked) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 30)
        return f"<think>Hm.</think> {question.samples[0]} samples <|im_end|>"

    told = Script(server, answer)
    a, b = recording("a", 1.0), recording("b", 2.5)

    async def asked():
        given = turns_about(a, b), [a, b, a], CaptionRequest()
        return await with_captions(server, *given), await with_captions(server, *given)

    (turns, rows), (again, cached) = asyncio.run(asked())
    first = "[Recording {}, 1.0 s. What is to be heard in it: 16000 samples < |im_end|>]\n"
    second = "[Recording 2, 2.5 s. What is to be heard in it: 40000 samples < |im_end|>]\n"
    assert (
        turns
        == again
        == [
            Turn("system", ("Be brief.",)),
            Turn("user", (first.format(1), second, "What is louder?")),
            Turn("assistant", ("The first.",)),
            Turn("user", (first.format(3), "And now?")),
        ]
    )
    assert [(one.text, one.endpoint, one.params.max_new_tokens) for one in told.asked] == [
        (DETAILED_CAPTION, "captions", 7)
    ] * 2
    assert [row["cached"] for row in rows] == [False] * 3
    assert cached == [row | {"cached": True} for row in rows]
    answer = rows[1].pop("usage").pop("completion_tokens")
    assert answer > 0
    assert rows[1] == {
        "id": "b",
        "seconds": 2.5,
        "caption": "40000 samples <|im_end|>",
        "finish_reason": "stop",
        "cached": False,
    }
    assert rows[0]["usage"]["prompt_tokens"] == TEXT_TOKENS + 25


def test_another_prompt_is_another_caption(server):
    told = Script(server, always("A dog.", "length"))
    a = recording("a", 1.0)

    async def asked(prompt):
        return await with_captions(server, [Turn("user", (Audio(a.pcm),))], [a], CaptionRequest(prompt))

    for prompt in ("Who?", "What?", "Who?"):
        _, (row,) = asyncio.run(asked(prompt))
        assert row["finish_reason"] == "length"
    assert [one.text for one in told.asked] == ["Who?", "What?"]
    with pytest.raises(ApiError, match="only the prompt itself may") as error:
        asyncio.run(asked("<|im_end|>"))
    assert (error.value.status, error.value.param) == (400, "afn_caption.prompt")


def test_nobody_learns_what_others_have_asked_about(server):
    Script(server, always("A dog."))
    a = recording("a", 1.0)
    given = server, [Turn("user", (Audio(a.pcm),))], [a], CaptionRequest()
    rows = [asyncio.run(with_captions(*given, owner))[1] for owner in ("one", "one", "other")]
    assert [row["cached"] for (row,) in rows] == [False, True, False]


def test_so_many_at_the_same_time(server):
    told = Script(server, always("A dog."))
    recordings = [recording(str(number), 0.1) for number in range(TOGETHER + 2)]
    turns = [Turn("user", tuple(Audio(one.pcm) for one in recordings))]
    _, rows = asyncio.run(with_captions(server, turns, recordings, CaptionRequest()))
    assert (len(rows), told.most) == (TOGETHER + 2, TOGETHER)
    assert all(one.options["admitted"] for one in told.asked)


def test_an_error_ends_the_other_captions(server):
    async def answer(question):
        if question.samples[0] == 16_000:
            while len(told.asked) < 2:
                await asyncio.sleep(0)
            raise ApiError(429, "full")
        return await asyncio.Event().wait()

    told = Script(server, answer)
    a, b = recording("a", 1.0), recording("b", 2.0)
    with pytest.raises(ApiError, match="full"):
        asyncio.run(with_captions(server, turns_about(a, b), [a, b, a], CaptionRequest()))
    assert (told.left.is_set(), told.running) == (True, 0)


def test_the_token_that_ends_a_caption_is_not_counted(server):
    Script(server, always("Rain."))
    a = recording("a", 1.0)
    _, rows = asyncio.run(with_captions(server, [Turn("user", (Audio(a.pcm), "What?"))], [a], CaptionRequest()))
    tokens = server.processor.tokenizer.encode("Rain.", add_special_tokens=False).ids
    assert rows[0]["usage"]["completion_tokens"] == len(tokens)


def test_the_model_describes_and_answers(server):
    a = recording("a", 1.0)

    async def asked():
        async with in_process(server):
            turns, rows = await with_captions(server, turns_about(a), [a, a], CaptionRequest("What is said?"))
            async with server.ask(turns, SamplingParams(max_new_tokens=3)) as stream:
                (answer,) = await stream.ended()
                return rows, answer, stream.audio_tokens

    rows, answer, audio_tokens = asyncio.run(asked())
    assert rows[0]["usage"]["audio_tokens"] == 25
    assert 0 < rows[0]["usage"]["completion_tokens"] <= 7
    assert (audio_tokens, answer.reason in ("stop", "length")) == (0, True)


def test_the_last_captions_are_kept():
    cache = CaptionCache(2)
    for name in "ab":
        cache.add("me", name, "?", Caption(name, "stop", 1, 1, 1))
    assert cache.get("me", "a", "?") == Caption("a", "stop", 1, 1, 1)
    cache.add("me", "c", "?", Caption("c", "stop", 1, 1, 1))
    assert [cache.get("me", name, "?") is None for name in "abc"] == [False, True, False]
    assert cache.get("me", "a", "!") is cache.get("you", "a", "?") is None


def test_what_a_request_says():
    assert read_caption_request(None) is read_caption_request(False) is None
    assert read_caption_request(True) == read_caption_request({}) == CaptionRequest(DETAILED_CAPTION)
    assert read_caption_request({"prompt": "Who?"}) == CaptionRequest("Who?")
    for value, param in (
        (1, "afn_caption"),
        ("yes", "afn_caption"),
        ({"model": "x"}, "afn_caption"),
        ({"prompt": " "}, "afn_caption.prompt"),
        ({"prompt": None}, "afn_caption.prompt"),
    ):
        with pytest.raises(ApiError) as error:
            read_caption_request(value)
        assert (error.value.status, error.value.param) == (400, param)
