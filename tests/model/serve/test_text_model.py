"""A text model behind the server: its reply, or why there is none."""

import asyncio

import pytest

from afn_model.prompt.conversation import Turn
from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings
from afn_model.serve.text_model import complete_elsewhere, messages_of
from tests.model.infer.text_endpoint import reply, text_endpoint

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
