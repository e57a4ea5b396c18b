"""Chat completions as OpenAI's own client reads them: whole, streamed, refused, and left early."""

import asyncio
import base64
import json
import logging
import tracemalloc

import httpx
import openai
import pytest

from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve import chat_reply
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server
from tests.model.serve.serving import in_process, running, tiny_server, wav
from tests.tiny import conversation

SOUND = base64.b64encode(wav(1.0)).decode()
CLIP = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
QUESTION = {"role": "user", "content": [CLIP, {"type": "text", "text": "What is said?"}]}


def form(pattern):
    """A schema that a text in quotes matches."""
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": {"type": "string", "pattern": pattern}}}


@pytest.fixture(scope="module")
def server():
    made = tiny_server()
    made.fingerprint = "fp_1"
    return made


@pytest.fixture(scope="module")
def address(server):
    with running(server) as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as found:
        yield found.chat.completions


def ask(client, *messages, **options):
    extra = {name: options.pop(name) for name in [*options] if name in EXTRA}
    given = {"model": "tiny", "max_completion_tokens": 12, "messages": messages or [QUESTION]} | options
    return client.create(**given, extra_body=extra)


EXTRA = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens", "priority")
EXTRA += ("max_thinking_tokens", "loop_tokens", "continue_final_message", "add_generation_prompt")


def test_whole(server, client):
    reply = ask(client, logprobs=True, top_logprobs=2, ignore_eos=True, user="-", metadata={"a": "b"}, store=False)
    (choice,) = reply.choices
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model, reply.system_fingerprint) == ("chat.completion", "tiny", "fp_1")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert (choice.message.refusal, choice.message.reasoning) == (None, None)
    model, processor = server.thread.engine.model, server.processor
    alone = Engine(model, processor, pages=60)
    batch = processor(conversation("What is said?", wav(1.0)))
    (expected,) = alone.add(batch, SamplingParams(max_new_tokens=12, logprobs=2, ignore_eos=True), keys=[0])
    alone.run()
    answer = expected.answers[0]
    assert choice.message.content == answer.finish.text
    usage, heard = reply.usage, processor.sound_id
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(expected.prompt.ids), 12)
    assert usage.total_tokens == usage.prompt_tokens + 12
    details = usage.prompt_tokens_details
    assert details.audio_tokens == expected.prompt.ids.count(heard) == 25
    assert (details.text_tokens, details.cached_tokens) == (usage.prompt_tokens - 25, 0)
    assert usage.completion_tokens_details.reasoning_tokens == 0
    entries = choice.logprobs.content
    assert b"".join(bytes(one.bytes) for one in entries).decode(errors="replace") == choice.message.content
    assert [one.logprob for one in entries] == answer.logprobs
    for one in entries:
        first, second = one.top_logprobs
        assert one.token == first.token
        assert one.logprob == first.logprob >= second.logprob
    (audio,) = reply.afn["audio"]
    assert (audio["seconds"], audio["windows"], len(audio["id"])) == (1.0, 1, 64)
    timing = reply.afn["timing"]
    assert 0 <= timing["queue"] <= timing["first_token"] <= timing["total"]
    assert reply.afn["finish_reason"] == choice.afn["finish_reason"] == "length"
    assert reply.afn["timestamps"] == []
    assert reply._request_id == reply.id


def test_streamed_is_the_whole_one_in_pieces(client):
    asked = {"logprobs": True, "top_logprobs": 1, "ignore_eos": True, "n": 2, "temperature": 1.0, "seed": 5}
    long = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(3.0)).decode(), "format": "wav"}}
    about = {"role": "user", "content": [long, {"type": "text", "text": "?"}]}
    whole = ask(client, about, **asked)
    assert whole.choices[0].message.content != whole.choices[1].message.content
    chunks = list(ask(client, about, **asked, stream=True, stream_options={"include_usage": True}))
    assert {(one.object, one.id, one.created, one.model, one.system_fingerprint) for one in chunks} == {
        ("chat.completion.chunk", chunks[0].id, chunks[0].created, "tiny", "fp_1")
    }
    *parts, last = chunks
    assert (last.choices, [one.model_dump(exclude_unset=True)["usage"] for one in parts]) == ([], [None] * len(parts))
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 24
    assert last.usage.prompt_tokens_details.cached_tokens == 64
    for index, expected in enumerate(whole.choices):
        own = [one for one in parts if one.choices[0].index == index]
        first, *middle, end = [one.choices[0] for one in own]
        assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
        assert "".join(one.delta.content for one in middle) == expected.message.content
        entries = [entry for one in middle for entry in (one.logprobs.content if one.logprobs else [])]
        assert entries == expected.logprobs.content
        assert (end.delta.content, end.finish_reason, end.afn) == (None, "length", {"finish_reason": "length"})
        assert own[-1].afn.keys() == whole.afn.keys()


def test_the_client_assembles_the_stream(server, address):
    end = server.processor.token_id("}")
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="-") as found,
        found.chat.completions.stream(
            model="tiny", messages=[QUESTION], logit_bias={end: 100}, response_format={"type": "json_object"}
        ) as stream,
    ):
        (choice,) = stream.get_final_completion().choices
    assert (choice.finish_reason, choice.message.role, choice.message.content) == ("stop", "assistant", "{}")


def test_thoughts_come_apart(server, client):
    """What the answer begins with decides where its text goes; nothing of it is lost."""
    opened = {"role": "assistant", "content": "<think>\n"}
    plain = ask(client, QUESTION, {"role": "assistant", "content": "\n"}, ignore_eos=True).choices[0].message
    thought = ask(client, QUESTION, opened, ignore_eos=True)
    message = thought.choices[0].message
    assert (plain.reasoning, message.content) == (None, "")
    assert message.reasoning == message.reasoning_content
    assert message.reasoning
    assert thought.usage.completion_tokens_details.reasoning_tokens == 12
    for piece in ask(client, QUESTION, opened, ignore_eos=True, stream=True):
        assert not piece.choices[0].delta.content
    cut = ask(client, QUESTION, opened, ignore_eos=True, max_thinking_tokens=2, max_completion_tokens=24)
    close = len(server.processor.tokenizer.encode("</think>", add_special_tokens=False).ids)
    assert cut.choices[0].message.content, "thinking was ended, and the answer came"
    assert cut.usage.completion_tokens_details.reasoning_tokens == 2 + close


def test_without_a_seed_each_answer_is_another(client):
    hot = {"temperature": 1.0, "ignore_eos": True}
    assert len({ask(client, **hot).choices[0].message.content for _ in range(2)}) == 2
    assert len({ask(client, **hot, seed=-3).choices[0].message.content for _ in range(2)}) == 1
    assert len({ask(client, **options).choices[0].message.content for options in ({}, {"temperature": 0})}) == 1


def test_what_may_begin_a_tag_is_sent_in_the_end(server, client):
    forced = {"logit_bias": {server.processor.token_id("<"): 100}, "repetition_penalty": 1.0, "ignore_eos": True}
    chunks = ask(client, **forced, top_k=-1, max_completion_tokens=3, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == "<<<"


def test_prefill_is_gone_on_from(server, client):
    tokenizer, start = server.processor.tokenizer, {"role": "assistant", "content": "A dog barks at"}
    closed = {"continue_final_message": False, "add_generation_prompt": False}

    def count(**options):
        return ask(client, QUESTION, start, **options).usage.prompt_tokens

    fresh = ask(client, QUESTION).usage.prompt_tokens
    assert count() - fresh == len(tokenizer.encode("A dog barks at", add_special_tokens=False).ids)
    assert count(continue_final_message=True) == count()
    assert fresh < count(**closed) < count(continue_final_message=False) == count(add_generation_prompt=True)
    said = ask(client, QUESTION, max_completion_tokens=12, ignore_eos=True)
    halves = ask(client, QUESTION, max_completion_tokens=4, ignore_eos=True).choices[0].message
    assert said.choices[0].message.content.startswith(halves.content)


def test_a_form_after_thoughts_is_the_answer(client):
    begun = {"role": "assistant", "content": "<think>Hm."}
    reply = ask(client, QUESTION, begun, response_format=form("^ab$"))
    assert (reply.choices[0].message.content, reply.choices[0].message.reasoning) == ('"ab"', None)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


def test_history_may_hold_what_an_answer_brought(client):
    first = ask(client).choices[0].message
    assert ask(client, QUESTION, first, {"role": "user", "content": "And then?"}).choices
    told = [{"role": "developer", "content": "Be short."}, QUESTION]
    assert (
        ask(client, *told).usage.prompt_tokens
        == ask(client, {"role": "system", "content": "Be short."}, QUESTION).usage.prompt_tokens
    )


def test_how_it_ends(client):
    text = ask(client, ignore_eos=True).choices[0].message.content
    stop = text[3:5]
    ended = ask(client, ignore_eos=True, stop=[stop, "never"]).choices[0]
    assert (ended.message.content, ended.finish_reason) == (text[: text.index(stop)], "stop")
    forced = {"logit_bias": {"65": 100}, "ignore_eos": True, "repetition_penalty": 1.0, "max_completion_tokens": 40}
    loop = ask(client, **forced, loop_tokens=16)
    assert (loop.choices[0].finish_reason, loop.afn["finish_reason"]) == ("stop", "repetition")
    assert loop.usage.completion_tokens == 16
    for stream in (False, True):
        empty = ask(client, **forced, stop_token_ids=[65], logprobs=True, stream=stream)
        choices = [one.choices[0] for one in empty] if stream else empty.choices
        assert not any(choice.logprobs and choice.logprobs.content for choice in choices)
        assert choices[-1].finish_reason == "stop"
    assert ask(client, max_completion_tokens=openai.NOT_GIVEN, max_tokens=3, min_tokens=3).usage.completion_tokens == 3
    assert ask(client, max_completion_tokens=0).choices[0].finish_reason == "length"


def test_forms(client):
    reply = ask(client, response_format=form("^[0-9]:<think>$"), max_completion_tokens=40)
    said = json.loads(reply.choices[0].message.content)
    assert (said[0].isdecimal(), said[1:]) == (True, ":<think>")


def test_a_prediction_changes_nothing_but_steps(server, client, monkeypatch):
    plain = ask(client, ignore_eos=True).choices[0].message.content
    add, told = server.thread.engine.add, []

    def noted(batch, params, **options):
        told.append((options["priority"], options["prediction"] is not None))
        return add(batch, params, **options)

    monkeypatch.setattr(server.thread.engine, "add", noted)
    for text in (plain, [{"type": "text", "text": "Something else"}]):
        guess = {"type": "content", "content": text}
        assert ask(client, ignore_eos=True, prediction=guess).choices[0].message.content == plain
    ask(client, priority=3, prediction=guess, logprobs=True, top_logprobs=1)
    assert told == [(0, True), (0, True), (-3, False)], "the likeliest tokens are not known of drafts"


def test_parts_of_every_kind_are_one_recording(server, client, monkeypatch):
    decoded, decode = [], server.intake.decode

    async def counted(data, **options):
        decoded.append(options)
        return await decode(data, **options)

    monkeypatch.setattr(server.intake, "decode", counted)
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/x-wav;base64,{SOUND}"}}
    content = [{"type": "text", "text": "a"}, url, {"type": "text", "text": "b"}, CLIP, CLIP | {"start": 0.25}]
    reply = ask(client, {"role": "system", "content": [CLIP]}, {"role": "user", "content": content})
    assert [one["start"] for one in decoded] == [None, 0.25]
    assert [audio["seconds"] for audio in reply.afn["audio"]] == [1.0, 0.75]
    assert reply.usage.prompt_tokens_details.audio_tokens == 3 * 25 + 19

    (whole,) = ask(client).afn["audio"]
    pcm = asyncio.run(decode(wav(1.0))).pcm
    server.uploads.add("", Recording(whole["id"], pcm))
    upload = {"type": "audio_url", "audio_url": {"url": f"afn://sha256/{whole['id']}"}, "end": 0.5}
    reply = ask(client, {"role": "user", "content": [upload]})
    assert [(one["id"], one["seconds"]) for one in reply.afn["audio"]] == [(f"{whole['id']}@0-0.5", 0.5)]


def bad_part(part):
    return {"messages": [{"role": "user", "content": "-"}, QUESTION, {"role": "user", "content": [part]}]}


PART = "messages[2].content[0]"
ERRORS = [
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"model": "gpt-5"}, 404, "model", "'tiny'"),
    ({"frobnicate": 1}, 400, "frobnicate", "unknown field"),
    ({"tools": []}, 400, "tools", "not supported"),
    ({"modalities": ["text", "image"]}, 400, "modalities[1]", "'text' or 'audio'"),
    ({"modalities": ["text", "audio"]}, 400, "modalities", "--voice DIR"),
    ({"audio": {"voice": "x", "format": "wav"}}, 400, "audio", 'no "audio"'),
    ({"cache_salt": "x"}, 400, "cache_salt", "not supported"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, 400, "chat_template_kwargs", "takes none"),
    ({"temperature": 2.5}, 400, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, 400, "temperature", "number"),
    ({"top_p": 0}, 400, "top_p", "0 < top_p <= 1"),
    ({"n": 17, "temperature": 1}, 400, "n", "less than or equal to 16"),
    ({"n": 2}, 400, "n", "the same at temperature 0"),
    ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, 400, "max_completion_tokens", "another value"),
    ({"min_tokens": 5, "max_tokens": 4}, 400, "min_tokens", "is above"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4"),
    ({"stop": [""]}, 400, "stop", "at least one character"),
    ({"stop": 3}, 400, "stop", "text or a list"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "logprobs must be true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "<= 20"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", "by token id"),
    ({"logit_bias": {"999999": 1}}, 400, "logit_bias", "none of 0 to"),
    ({"stop_token_ids": [999999], "min_tokens": 1}, 400, "stop_token_ids", "none of 0 to"),
    ({"presence_penalty": 3}, 400, "presence_penalty", "-2 <= penalty <= 2"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", "0.01"),
    ({"response_format": {"type": "xml"}}, 400, "response_format", "json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "?"}}}},
        400,
        "response_format",
        "",
    ),
    ({"prediction": {"type": "content"}}, 400, "prediction", "content"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream is not true"),
    ({"stream": True, "stream_options": {"x": True}}, 400, "stream_options.x", "unknown field"),
    ({"continue_final_message": True}, 400, "continue_final_message", "the assistant's"),
    ({"continue_final_message": True, "add_generation_prompt": True}, 400, "continue_final_message", "exclude"),
    ({"messages": [{"role": "tool", "content": "-"}]}, 400, "messages[0].role", "'developer'"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "array"),
    ({"messages": [{"role": "user", "name": "Ann", "content": "-"}]}, 400, "messages[0].name", "not supported"),
    ({"messages": [{"role": "assistant", "content": [CLIP]}]}, 400, "messages[0]", "text alone"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages", "; fewer or shorter"),
    (bad_part({"type": "image_url"}), 400, PART, "'input_audio'"),
    (bad_part({"type": "text"}), 400, PART, "needs text"),
    (bad_part({"type": "text", "text": "-", "end": 1.0}), 400, PART, "not of text"),
    (bad_part({"type": "text", "text": "<|im_end|>"}), 400, PART, "only the prompt itself may"),
    (bad_part({"type": "text", "text": "Hear <sound>"}), 400, PART, "0 audios"),
    (bad_part(CLIP | {"start": 2.0, "end": 1.0}), 400, PART, "above start"),
    (bad_part(CLIP | {"start": 5.0}), 422, PART, "outside"),
    (bad_part(CLIP | {"end": 1e308}), 400, PART, "1000000"),
    (bad_part({"type": "input_audio", "input_audio": {"format": "wav"}}), 400, PART, "data"),
    (bad_part({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}), 400, PART, "not base64"),
    (bad_part({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), 400, PART, "empty"),
    (bad_part({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}), 415, PART, "not audio"),
    (bad_part({"type": "audio_url", "audio_url": {"url": "data:audio/wav,AAAA"}}), 400, PART, "base64"),
    (bad_part({"type": "audio_url", "audio_url": {"url": "data:image/png;base64,AAAA"}}), 415, PART, "not audio"),
    (bad_part({"type": "audio_url", "audio_url": {"url": "afn://sha256/beef"}}), 404, PART, "upload it again"),
    (bad_part({"type": "audio_url", "audio_url": {"url": "http://169.254.169.254/"}}), 400, PART, "fetches nothing"),
    (bad_part({"type": "audio_url", "audio_url": {"url": "/etc/passwd"}}), 400, PART, "must begin with"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), ERRORS, ids=[str(at) for at in range(len(ERRORS))])
def test_what_is_refused(address, body, status, param, words):
    for stream in [False, True] if "stream" not in body and "stream_options" not in body else [None]:
        whole = {"messages": [{"role": "user", "content": "-"}], "stream": stream} | body
        reply = httpx.post(f"{address}/v1/chat/completions", json=whole)
        assert reply.status_code == status, reply.text
        error = reply.json()["error"]
        assert error["param"] == param
        assert words in error["message"]
        assert "\n" not in error["message"]
        assert len(error["message"]) < 400


def test_bodies_that_are_no_request(address):
    for body in (b"", b"{", b"[]", b'{"messages": ["\\ud800"]}', b"[" * 100_000, b"\xff"):
        reply = httpx.post(f"{address}/v1/chat/completions", content=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_schema_says_what_is_read(address):
    found = httpx.get(f"{address}/openapi.json").json()
    schema = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "max_completion_tokens", "response_format"} <= schema["properties"].keys()
    place = found
    for name in schema["properties"]["messages"]["items"]["$ref"].removeprefix("#/").split("/"):
        place = place[name.replace("~1", "/")]
    assert place["properties"].keys() >= {"role", "content"}


def idle(server):
    """Nothing runs, and all pages are accounted for."""

    def look(engine):
        engine.pool.check([])
        return engine.scheduler.running(), engine.steps

    return asyncio.run(server.thread.call(look))


@pytest.mark.parametrize("stream", [True, False])
def test_nobody_answers_a_client_that_has_gone(server, address, stream, caplog):
    body = {"messages": [QUESTION], "max_tokens": 400, "ignore_eos": True, "stream": stream}
    with caplog.at_level(logging.INFO, "afn.serve"):

        async def leave():
            async with httpx.AsyncClient() as web:
                url = f"{address}/v1/chat/completions"
                if stream:
                    async with web.stream("POST", url, json=body) as reply:
                        async for _ in reply.aiter_bytes():
                            return
                asking = asyncio.ensure_future(web.post(url, json=body))
                while not await server.thread.call(lambda engine: engine.scheduler.running()):
                    pass
                asking.cancel()

        asyncio.run(leave())
        while not any(" 499, " in message for message in caplog.messages):
            asyncio.run(server.thread.call(lambda engine: None))
    running_now, _ = idle(server)
    assert running_now == 0
    assert asyncio.run(server.thread.call(lambda engine: engine.steps)) == idle(server)[1]


def test_what_a_request_was_is_not_kept_while_it_is_answered(monkeypatch):
    server, ask, kept = tiny_server(), Server.ask, []

    def looks(self, *args, **options):
        kept.append(tracemalloc.get_traced_memory()[0])
        return ask(self, *args, **options)

    monkeypatch.setattr(Server, "ask", looks)
    parts = [{"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(60.0)).decode()}}]
    body = json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 1}).encode()

    async def asked():
        async with in_process(server) as client:
            tracemalloc.start()
            try:
                return await client.post("/v1/chat/completions", content=body)
            finally:
                tracemalloc.stop()

    assert asyncio.run(asked()).status_code == 200
    assert kept[0] < len(body) / 2


def test_an_answer_that_fails(server, address, monkeypatch):
    def fails(*_):
        raise RuntimeError("secret.path")

    monkeypatch.setattr(server.thread.engine, "_launch", fails)
    for stream in (False, True):
        reply = httpx.post(f"{address}/v1/chat/completions", json={"messages": [QUESTION], "stream": stream})
        assert reply.status_code == (200 if stream else 500)
        text = reply.text.removeprefix("data: ")
        assert json.loads(text)["error"]["code"] == "internal_error"
        assert "secret" not in text
        assert "DONE" not in text


@pytest.mark.parametrize("content", [False, True])
def test_logs_say_nothing_of_the_content_unless_told(content, caplog):
    server = tiny_server(log_content=content)

    async def asked():
        async with in_process(server) as web:
            body = {"messages": [{"role": "user", "content": "secret?"}], "max_tokens": 2}
            return (await web.post("/v1/chat/completions", json=body)).json()

    with caplog.at_level(logging.INFO, "afn.serve"):
        reply = asyncio.run(asked())
    usage = reply["usage"]
    counts = f"{reply['id']} 200, {usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    assert any(message.startswith(counts) for message in caplog.messages)
    assert any("secret" in message for message in caplog.messages) is content


def test_tokens_are_counted(server, client, address):
    def count(**body):
        return httpx.post(f"{address}/tokenize", json=body).json()

    text = count(prompt="A dog barks.", return_token_strs=True)
    assert server.processor.decode(text["tokens"]) == "A dog barks."
    assert text["count"] == len(text["token_strs"])
    assert count(messages=[QUESTION])["count"] == ask(client).usage.prompt_tokens
    assert "either" in count()["error"]["message"]


def test_times_stand_where_their_text_went(client):
    """They are read of all the text, and found in the part of it that they went to."""
    extra = {"response_format": form("^It barks at 0:40[.]$"), "max_completion_tokens": 60}
    (found,) = ask(client, **extra).afn["timestamps"]
    said = json.loads(ask(client, **extra).choices[0].message.content)
    start, stop = found.pop("span")
    assert f'"{said}"'[start:stop] == found["text"] == "0:40"
    assert (found["start"], found["status"], found["where"], found["choice"]) == (40.0, "past_end", "answer", 0)
    *_, end = ask(client, **extra, stream=True)
    assert [one["start"] for one in end.afn["timestamps"]] == [40.0]


def test_spans_of_thoughts(client, monkeypatch):
    async def times_of(server, text, recordings, thinking, verify):
        return [{"span": (1, 3), "where": str(thinking)}]

    monkeypatch.setattr(chat_reply, "times_of", times_of)
    opened = {"role": "assistant", "content": "<think>"}
    (found,) = ask(client, QUESTION, opened, ignore_eos=True).afn["timestamps"]
    assert (found["span"], found["where"]) == ([1, 3], "think")
