"""A text model behind the server: its reply, or why there is none."""

import asyncio
import base64

import openai
import pytest

from afn_model.prompt.conversation import Turn
from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings
from afn_model.serve.text_model import complete_elsewhere, messages_of
from tests.model.infer.text_endpoint import reply, text_endpoint
from tests.model.serve.serving import running, tiny_server, wav

TURNS = [Turn("system", ("Be brief.",)), Turn("user", ("[Recording 1]\n", "What is it?"))]


def test_its_reply():
    with text_endpoint(lambda _: reply("A dog.") | {"usage": {"total_tokens": 9}}) as there:
        settings = Settings(then_url=there.url, then_key="k", then_model="own")
        found = asyncio.run(complete_elsewhere(settings, messages_of(TURNS), {"temperature": 0.5}))
        assert found == reply("A dog.") | {"usage": {"total_tokens": 9}}
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "[Recording 1]\nWhat is it?"},
        ]
        asked = ("POST /v1/chat/completions", "Bearer k", {"model": "own", "messages": messages, "temperature": 0.5})
        assert there.asked == [asked]


def test_its_errors():
    with text_endpoint(lambda _: {"error": {"message": "no room"}}, status=429) as there:
        settings = Settings(then_url=there.url, then_model="own")
        with pytest.raises(ApiError, match="the text model: 429 Too Many Requests: no room") as error:
            asyncio.run(complete_elsewhere(settings, messages_of(TURNS), {}))
    assert (error.value.status, error.value.code) == (502, "text_model_failed")
    assert there.url not in error.value.message
    with pytest.raises(ApiError, match="the text model: nobody answers"):
        asyncio.run(complete_elsewhere(settings, messages_of(TURNS), {}))


def test_many_at_the_same_time():
    with text_endpoint(lambda body: reply(body["messages"][0]["content"])) as there:
        settings = Settings(then_url=there.url, then_model="own")

        async def asked():
            asking = (complete_elsewhere(settings, [{"role": "user", "content": str(n)}], {}) for n in range(40))
            return [found["choices"][0]["message"]["content"] for found in await asyncio.gather(*asking)]

        assert asyncio.run(asked()) == [str(n) for n in range(40)]


def test_the_key_is_not_printed():
    assert "secret" not in repr(Settings(then_key="secret"))


def chat(url, **fields):
    """A completion about half a second of sound, through the openai client."""
    audio = {"data": base64.b64encode(wav(0.5)).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "What barks?"}]
    extra = {"afn_caption": {"prompt": "What is heard?"}} | fields.pop("extra_body", {})
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], extra_body=extra, **fields
    )


def test_a_chat_completion_goes_by_way_of_a_caption():
    """The text model is told what is heard, and the times of its answer are checked against the recording."""
    with text_endpoint(lambda _: reply("A dog barks at 0:09.")) as there:
        server = tiny_server(then_url=there.url, then_model="own", max_new_tokens=5)
        with running(server) as url:
            found = chat(url, temperature=0.5)
            (caption,) = found.afn["captions"]
            assert found.choices[0].message.content == "A dog barks at 0:09."
            assert [(one["start"], one["status"]) for one in found.afn["timestamps"]] == [(9.0, "past_end")]
            *chunks, usage = chat(url, temperature=0.5, stream=True)
            assert [chunk.choices[0].delta.content for chunk in chunks] == ["A dog barks at 0:09."]
            assert chunks[0].afn["captions"] == [caption | {"cached": True}]
            assert usage.choices == []
    ((_, _, first), (_, _, second)) = there.asked
    assert first == second, "the text model does not stream"
    assert (first["model"], first["temperature"], set(first)) == ("own", 0.5, {"model", "messages", "temperature"})
    (message,) = first["messages"]
    assert caption["caption"] in message["content"]
    assert message["content"].endswith("What barks?")


def test_without_another_model_ours_reads_the_caption():
    with running(tiny_server(max_new_tokens=5)) as url:
        found = chat(url)
        assert found.usage.prompt_tokens_details.audio_tokens == 0
        assert found.afn["captions"][0]["usage"]["audio_tokens"] == 12
        with pytest.raises(openai.BadRequestError, match="afn_caption"):
            chat(url, extra_body={"afn_caption": {"question": "?"}})
