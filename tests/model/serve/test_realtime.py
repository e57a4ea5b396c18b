"""Sessions over a real socket: OpenAI's client, and clients that behave badly."""

import asyncio
import base64
import io
import json
import threading
from contextlib import asynccontextmanager

import numpy as np
import openai
import pytest
import soundfile
import websockets

from afn_model.audio.decode import load_audio
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.realtime import UNREAD, Inbox
from tests.model.serve.serving import running, tiny_server
from tests.tiny import conversation, noise, tiny

TRANSCRIPTION = "conversation.item.input_audio_transcription"
MANUAL = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}}
LENGTH = 12


@pytest.fixture(scope="module")
def server():
    return tiny_server(
        engine={"deterministic": True}, keys=("secret",), max_new_tokens=LENGTH, max_seconds=60.0, max_sessions=3
    )


@pytest.fixture(scope="module")
def address(server):
    with running(server) as found:
        yield found


def pcm16(seconds, seed=0, rate=24_000):
    return (noise(seconds, seed, rate) * 32767).astype("<i2")


def append(pcm):
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm.tobytes()).decode()}


def whole(pcm, rate, question="Transcribe the input speech."):
    """What a request with the whole recording is answered."""
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="WAV", subtype="PCM_16")
    model, processor = tiny()
    heard = load_audio(file.getvalue(), dtype=processor.pcm_dtype)
    engine = Engine(model, processor, pages=400, deterministic=True)
    (request,) = engine.add(processor(conversation(question, heard)), SamplingParams(max_new_tokens=LENGTH), keys=[0])
    engine.run()
    return request


@asynccontextmanager
async def opened(address, path="/v1/realtime?intent=transcription", key="secret", **options):
    headers = {"Authorization": f"Bearer {key}"}
    url = address.replace("http", "ws") + path
    async with websockets.connect(url, additional_headers=headers, **options) as socket:

        async def tell(event):
            await socket.send(json.dumps(event))

        async def hear(kind=None):
            while True:
                event = json.loads(await asyncio.wait_for(socket.recv(), 20))
                if kind is None or event["type"] == kind:
                    return event

        yield socket, tell, hear


def held(engine):
    return sum(window.references for window in engine.audio._windows.values())


async def closed(server):
    for _ in range(4000):
        if not server.limits.sessions:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the session goes on")


async def freed(server):
    """Waits until sessions have been closed; nothing is held one step later."""
    await closed(server)
    steps = await server.thread.call(lambda engine: engine.steps)
    after = await server.thread.call(lambda engine: (engine.steps, held(engine), len(engine.early)))
    assert after[0] <= steps + 1
    assert after[1:] == (0, 0)
    await server.thread.call(lambda engine: engine.pool.check([]))


def test_with_the_client_of_openai(server, address):
    """Two recordings in one session, every field of every event, and the answers of the whole recordings."""
    first, second = pcm16(31.0, 1), pcm16(1.5, 2)

    async def talked():
        client = openai.AsyncOpenAI(
            api_key="secret", base_url=f"{address}/v1", websocket_base_url=f"{address}/v1".replace("http", "ws")
        )
        found = []
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            created = await connection.recv()
            assert created.type == "session.created"
            assert created.session.type == "transcription"
            heard = created.session.audio.input
            assert (heard.format.type, heard.format.rate, heard.transcription.model) == ("audio/pcm", 24_000, "tiny")
            assert heard.turn_detection.to_dict() == {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 500,
            }
            await connection.session.update(session=MANUAL["session"])
            updated = await connection.recv()
            assert (updated.type, updated.session.audio.input.turn_detection) == ("session.updated", None)
            for pcm in (first, second):
                for at in range(0, len(pcm), 77_777):
                    await connection.input_audio_buffer.append(**dict([list(append(pcm[at : at + 77_777]).items())[1]]))
                await connection.input_audio_buffer.commit()
                events = []
                while not events or not events[-1].type.endswith(("completed", "failed")):
                    events.append(await connection.recv())
                found.append(events)
        await client.close()
        return found

    found = asyncio.run(asyncio.wait_for(talked(), 60))
    previous = None
    for pcm, (committed, created, *deltas, completed) in zip((first, second), found, strict=True):
        expected = whole(pcm, 24_000)
        answer = expected.answers[0]
        assert committed.type == "input_audio_buffer.committed"
        assert created.type == "conversation.item.created"
        assert committed.item_id == created.item.id == completed.item_id
        assert committed.previous_item_id == created.previous_item_id == previous
        previous = committed.item_id
        assert (created.item.type, created.item.role, created.item.status) == ("message", "user", "completed")
        assert [part.type for part in created.item.content] == ["input_audio"]
        assert {delta.type for delta in deltas} == {f"{TRANSCRIPTION}.delta"}
        assert "".join(delta.delta for delta in deltas) == completed.transcript == answer.finish.text
        assert completed.type == f"{TRANSCRIPTION}.completed"
        assert completed.content_index == 0
        assert answer.finish.text
        audio = sum(span.stop - span.start for span in expected.prompt.windows)
        assert completed.usage.to_dict() == {
            "type": "tokens",
            "input_tokens": len(expected.prompt.ids),
            "output_tokens": len(answer.tokens),
            "total_tokens": len(expected.prompt.ids) + len(answer.tokens),
            "input_token_details": {"audio_tokens": audio, "text_tokens": len(expected.prompt.ids) - audio},
        }
        events = [event.event_id for event in (committed, created, *deltas, completed)]
        assert len(set(events)) == len(events)


def test_other_rates_clear_and_questions(server, address):
    pcm = pcm16(1.2, 3, rate=48_000)

    async def talked():
        async with opened(address) as (_, tell, hear):
            await hear("session.created")
            given = {"format": {"type": "audio/pcm", "rate": 48_000}, "turn_detection": None}
            given["transcription"] = {"question": "What is said?", "language": "de"}
            await tell({"type": "session.update", "session": {"audio": {"input": given}}})
            updated = (await hear("session.updated"))["session"]["audio"]["input"]
            assert updated["format"]["rate"] == 48_000
            assert updated["transcription"]["question"] == "What is said?"
            await tell(append(pcm16(0.7, 9)))
            await tell({"type": "input_audio_buffer.clear"})
            assert set(await hear("input_audio_buffer.cleared")) == {"type", "event_id"}
            for at in range(0, len(pcm), 4001):
                await tell(append(pcm[at : at + 4001]))
            await tell({"type": "input_audio_buffer.commit"})
            return await hear(f"{TRANSCRIPTION}.completed")

    found = asyncio.run(talked())
    assert found["transcript"] == whole(pcm, 48_000, "What is said?").answers[0].finish.text


def test_what_is_wrong_is_said_and_the_session_goes_on(address):
    async def talked():
        async with opened(address) as (socket, tell, hear):
            await hear("session.created")

            async def refused(event, code, param=None, message=""):
                await (socket.send(event) if isinstance(event, (str, bytes)) else tell(event))
                error = (await hear("error"))["error"]
                assert set(error) == {"type", "code", "message", "param", "event_id"}
                assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
                assert message in error["message"]
                return error

            def update(**fields):
                return {"type": "session.update", "session": fields}

            await refused("{", "invalid_json")
            await refused("[" * 100_000, "invalid_json")
            await refused(b"\xff\xfe", "invalid_json")
            await refused('{"type": "x", "event_id": "\\ud800"}', "invalid_json")
            half = update(audio={"input": {"transcription": {"prompt": "\ud800"}}})
            await refused(json.dumps(half), "invalid_json")
            await refused("[1]", "invalid_event", "type")
            await refused({"type": "response.create"}, "unknown_event", "type")
            error = await refused(
                {"type": "input_audio_buffer.clear", "event_id": "e1", "x": 1}, "unknown_parameter", "x"
            )
            assert error["event_id"] == "e1"
            await refused({"type": "input_audio_buffer.append"}, "invalid_value", "audio")
            await refused({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_value", "audio")
            await refused({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_value", "audio", "3 bytes")
            await refused({"type": "input_audio_buffer.append", "audio": "A" * (4 << 20)}, "too_large")
            await refused({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty")
            await refused({"type": "session.update"}, "invalid_value", "session")
            await refused(update(type="realtime"), "invalid_value", "session.type")
            await refused(update(voice="alloy"), "unknown_parameter", "session.voice")
            heard = "session.audio.input"
            await refused(
                update(audio={"input": {"format": {"type": "audio/pcmu"}}}), "invalid_value", f"{heard}.format.type"
            )
            await refused(
                update(audio={"input": {"turn_detection": {"type": "semantic_vad"}}}),
                "invalid_value",
                f"{heard}.turn_detection.type",
            )
            await refused(
                update(input_audio_noise_reduction={"type": "near_field"}),
                "invalid_value",
                "session.input_audio_noise_reduction",
            )
            await tell({"type": "transcription_session.update", "session": {"turn_detection": None}})
            assert (await hear())["type"] == "transcription_session.updated"
            await tell(append(pcm16(0.1)))
            fast = {"format": {"type": "audio/pcm", "rate": 16_000}}
            await refused(update(audio={"input": fast}), "buffer_not_empty", heard)
            await tell({"type": "input_audio_buffer.commit"})
            assert (await hear())["type"] == "input_audio_buffer.committed"

    asyncio.run(talked())


def test_turns_by_loudness(server, address):
    """Silence, speech, silence, speech: each turn is the slice of the recording that its events name."""
    quiet = np.zeros(24_000, dtype="<i2")
    pcm = np.concatenate([quiet, pcm16(0.8, 4), quiet, pcm16(0.9, 5), quiet])

    async def talked():
        found = []
        async with opened(address) as (_, tell, hear):
            await hear("session.created")
            for at in range(0, len(pcm), 70_000):
                await tell(append(pcm[at : at + 70_000]))
            while len([event for event in found if event["type"].endswith("completed")]) < 2:
                found.append(await hear())
        return found

    found = asyncio.run(talked())
    order = [event["type"].rsplit(".", 1)[1] for event in found if not event["type"].startswith(TRANSCRIPTION)]
    assert order == ["speech_started", "speech_stopped", "committed", "created"] * 2
    starts = [event for event in found if event["type"].endswith("speech_started")]
    stops = [event for event in found if event["type"].endswith("speech_stopped")]
    assert [event["audio_start_ms"] for event in starts] == [700, 2500]
    assert [event["audio_end_ms"] for event in stops] == [2300, 4200]
    for start, stop in zip(starts, stops, strict=True):
        (done,) = [e for e in found if e["type"].endswith("completed") and e["item_id"] == start["item_id"]]
        slice_ = pcm[start["audio_start_ms"] * 24 : stop["audio_end_ms"] * 24]
        assert done["transcript"] == whole(slice_, 24_000).answers[0].finish.text


def test_a_client_that_goes_is_not_computed(server, address):
    """It goes while the engine is in a long step: what it has sent is not begun."""
    goes_on, before = threading.Event(), server.thread.engine.steps

    async def talked():
        server.thread.post(lambda engine: goes_on.wait(30))
        try:
            async with opened(address) as (socket, tell, hear):
                await tell(MANUAL)
                await hear("session.updated")
                await tell(append(pcm16(31.0, 20)))
                await tell({"type": "session.update", "session": {}})  # not dealt with before the engine is asked
                while server.thread._wanted.empty():
                    await asyncio.sleep(0.001)
                socket.transport.abort()
            await closed(server)
        finally:
            goes_on.set()
        await freed(server)

    asyncio.run(talked())
    assert server.thread.engine.steps == before


@pytest.mark.parametrize("committed", [False, True])
def test_a_client_that_goes_leaves_nothing(server, address, committed):
    async def talked():
        async with opened(address) as (socket, tell, hear):
            await tell(MANUAL)
            await hear("session.updated")
            await tell(append(pcm16(31.0, 6 + committed, rate=24_000)))
            if committed:
                await tell({"type": "input_audio_buffer.commit"})
                await hear("conversation.item.created")
            socket.transport.abort()

        await freed(server)

    asyncio.run(talked())


def test_limits_of_sessions(server, address):
    async def talked():
        async with opened(address) as (_socket, tell, hear):
            await tell(MANUAL)
            await hear("session.updated")
            for seed in range(3):
                await tell(append(pcm16(24.0, seed)))
            error = (await hear("error"))["error"]
            assert (error["code"], error["param"]) == ("too_long", "audio")
            with pytest.raises(websockets.ConnectionClosedError) as ended:
                await hear()
            assert ended.value.rcvd.code == 1009
        await freed(server)
        async with opened(address), opened(address), opened(address), opened(address) as (_, _, hear):
            error = (await hear())["error"]
            assert (error["code"], error["type"]) == ("too_many_sessions", "rate_limit_error")
            assert 'afn:realtime_sessions{model_name="tiny"} 3.0' in server.metrics.text().decode()
            with pytest.raises(websockets.ConnectionClosedError) as ended:
                await hear()
            assert ended.value.rcvd.code == 1013
        await freed(server)

    asyncio.run(talked())
    seen = server.metrics.text().decode()
    assert 'vllm:admission_rejections_total{model_name="tiny",reason="sessions"} 1.0' in seen
    assert 'afn:realtime_sessions_closed_total{model_name="tiny",reason="limit"} 1.0' in seen
    assert 'afn:realtime_sessions{model_name="tiny"} 0.0' in seen


def test_keys_of_browsers(server, address):
    async def talked():
        url = address.replace("http", "ws") + "/v1/realtime"
        async with websockets.connect(url, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
            assert socket.subprotocol == "realtime"
            assert json.loads(await socket.recv())["type"] == "session.created"
        for protocols in (None, ["realtime"], ["realtime", "openai-insecure-api-key.wrong"]):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(url, subprotocols=protocols)
            assert refused.value.response.status_code == 403
        async with opened(address, "/v1/realtime?model=gpt-realtime") as (_, _, hear):
            assert (await hear("error"))["error"]["code"] == "model_not_found"
        async with opened(address, "/v1/realtime?intent=conversation") as (_, _, hear):
            assert (await hear("error"))["error"]["param"] == "intent"

    asyncio.run(talked())


def test_interim_transcripts(address):
    """They come while the recording comes, and do not change what is said at its end."""
    pcm = pcm16(2.0, 8)

    async def talked():
        async with opened(address) as (_, tell, hear):
            await tell({"type": "session.update", "session": MANUAL["session"] | {"interim_ms": 500}})
            await hear("session.updated")
            await tell(append(pcm[:24_000]))
            interim = await hear(f"{TRANSCRIPTION}.interim")
            await tell(append(pcm[24_000:]))
            await hear(f"{TRANSCRIPTION}.interim")
            await tell({"type": "input_audio_buffer.commit"})
            return interim, await hear(f"{TRANSCRIPTION}.completed")

    interim, completed = asyncio.run(talked())
    assert interim["item_id"] == completed["item_id"]
    assert 900 < interim["audio_end_ms"] <= 1000
    assert completed["transcript"] == whole(pcm, 24_000).answers[0].finish.text


def test_pages_of_others_and_sessions_that_sleep():
    server = tiny_server(idle_seconds=0.2)
    with running(server) as address:

        async def talked():
            url = address.replace("http", "ws") + "/v1/realtime"
            for spoken in (None, ["realtime", "openai-insecure-api-key.x"]):
                with pytest.raises(websockets.InvalidStatus):
                    await websockets.connect(url, origin="https://example.org", subprotocols=spoken)
            async with websockets.connect(url, origin=address) as socket:
                assert json.loads(await socket.recv())["type"] == "session.created"
                error = json.loads(await asyncio.wait_for(socket.recv(), 20))["error"]
                assert error["code"] == "session_idle"
                with pytest.raises(websockets.ConnectionClosed) as ended:
                    await socket.recv()
                assert ended.value.rcvd.code == 1001

        asyncio.run(talked())


def test_no_more_is_read_than_can_wait():
    async def filled():
        inbox = Inbox()
        await inbox.put("x" * UNREAD)
        second = asyncio.create_task(inbox.put("second"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not second.done()
        assert len(await inbox.get()) == UNREAD
        await asyncio.wait_for(second, 5)
        assert await inbox.get() == "second"

    asyncio.run(filled())
