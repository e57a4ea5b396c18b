"""A stream while nothing comes."""

import asyncio
import threading

from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Turn
from afn_model.serve import chat_stream
from afn_model.serve.chat_audio import HeardChat
from afn_model.serve.chat_reply import Chat
from afn_model.serve.chat_request import ChatRequest
from afn_model.serve.chat_stream import EventStream
from tests.model.serve.serving import tiny_server


def test_a_comment_breaks_a_silence(monkeypatch):
    server, gate, sent = tiny_server(), threading.Event(), []
    launch = server.thread.engine.runner.launch

    def waits(*given):
        assert gate.wait(30)
        return launch(*given)

    async def send(message):
        sent.append(message)
        if message.get("body", b"").startswith(b":"):
            gate.set()

    monkeypatch.setattr(server.thread.engine.runner, "launch", waits)
    monkeypatch.setattr(chat_stream, "SILENCE", 0.0)
    asked = ChatRequest.model_validate({"messages": [{"role": "user", "content": "-"}], "stream": True})
    heard = HeardChat([Turn("user", ("-",))], [])
    chat = Chat(server, asked, SamplingParams(max_new_tokens=3), "", {}, heard, [], 0.0)

    async def run():
        await server.start()
        await EventStream(chat, send).run()
        await server.stop()

    asyncio.run(run())
    start, *bodies, end = sent
    assert (start["type"], end) == (
        "http.response.start",
        {"type": "http.response.body", "body": b"", "more_body": False},
    )
    text = b"".join(message["body"] for message in bodies).decode()
    events = [event for event in text.split("\n\n") if event]
    assert events[0] == ": still here"
    assert [event for event in events if not event.startswith(":")][-1] == "data: [DONE]"
    assert all(event.startswith((": ", "data: ")) for event in events)
