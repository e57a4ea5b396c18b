"""``afn serve`` as a process: killed under load, told to end, and started again."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from argparse import Namespace
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest
import torch

from afn_model.cli import main
from afn_model.cli import serve as command
from tests.model.speech.small_voice import small_voice
from tests.tiny import noise, save_tiny, tiny

LONG = " ".join(["What is said, and when does the dog bark?"] * 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@contextmanager
def serving(model, port=0, *options):
    """(process, port) of a server that answers."""
    words = ["serve", "--model", str(model), "--name", "tiny", "--port", str(port), *options]
    process = subprocess.Popen([sys.executable, "-m", "afn_model.cli", *words], stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.match(r"Serving tiny on http://127\.0\.0\.1:(\d+)$", line):
                break
        else:
            raise AssertionError("".join(said))
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(port, text, **fields) -> dict:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 6} | fields
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    with urlopen(Request(url, json.dumps(body).encode()), timeout=60) as reply:
        return json.load(reply)


class Streams:
    """Clients that read streams, each in a thread: what each got until its stream ended, however that was."""

    def __init__(self, port, count):
        self.found, self.begun = [b""] * count, [threading.Event() for _ in range(count)]
        self.threads = [threading.Thread(target=self._read, args=(port, at), daemon=True) for at in range(count)]
        for thread in self.threads:
            thread.start()
        for begun in self.begun:
            assert begun.wait(60)
        assert all(b"content" in found for found in self.found), self.found

    def _read(self, port, at):
        asked = {"messages": [{"role": "user", "content": f"{at} {LONG}"}], "stream": True, "max_tokens": 1000}
        body = json.dumps(asked | {"ignore_eos": True, "repetition_penalty": 1.0}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(head + body)
            try:
                while part := client.recv(1 << 16):
                    self.found[at] += part
                    if b'"content"' in self.found[at]:
                        self.begun[at].set()
            except ConnectionError:
                pass
        self.begun[at].set()

    def ended(self, seconds):
        for thread in self.threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a client waits for a server that has gone"
        return self.found


@pytest.mark.slow
def test_a_killed_server_starts_again_with_what_it_saved(model, tmp_path):
    """Pages that the pool gave up before are read again; one that is damaged is computed again."""
    options = ["--pages", "200", "--slots", "16", "--offload", str(tmp_path), "--offload-memory-gb", "0"]
    with serving(model, 0, *options) as (process, port):
        first = ask(port, LONG)
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert first["system_fingerprint"].startswith("fp_")
        for other in range(18):  # the pool gives up its pages for theirs
            ask(port, f"{other} {' '.join([LONG] * 6)}", max_tokens=1)
        streams = Streams(port, 16)
        process.send_signal(signal.SIGKILL)
        for found in streams.ended(10):
            assert b"[DONE]" not in found
    (folder,) = tmp_path.iterdir()
    with serving(model, port, *options) as (process, port):
        again = ask(port, LONG)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "nothing was read again"
        assert again["choices"] == first["choices"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for file in folder.glob("*.page"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    with serving(model, port, *options) as (process, port):
        again = ask(port, LONG)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "a damaged page was used"
        assert again["choices"] == first["choices"]


@pytest.mark.slow
def test_who_is_told_to_end_lets_answers_end(model):
    with serving(model, 0, "--grace", "1") as (process, port):
        streams = Streams(port, 4)
        process.send_signal(signal.SIGTERM)
        found = streams.ended(30)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    for said in found:
        last = said.decode().rstrip("\r\n0").rsplit("data: ", 1)[1]
        assert "[DONE]" in last or json.loads(last)["error"]["code"] == "engine_died"
        assert said.endswith(b"0\r\n\r\n"), "the stream is cut off"


def errors(capsys, *words) -> str:
    assert main(["serve", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_cannot_be_served_is_said_in_a_line(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as done:
        main(["serve", "--help"])
    assert done.value.code == 0
    assert "--offload DIR" in capsys.readouterr().out
    assert "not a positive whole number" in errors(capsys, "--model", "m", "--slots", "0")
    assert "'-1' is not a positive" in errors(capsys, "--model", "m", "--offload-memory-gb=-1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "Address already in use" in errors(capsys, "--model", "m", "--port", port)
    assert "no_model" in errors(capsys, "--model", str(tmp_path / "no_model"), "--port", "0")
    monkeypatch.setattr(command, "NEEDED", ("fastapi", "no_such_module"))
    assert "no_such_module: pip install 'afn-kernels[serve]'" in errors(capsys, "--model", "m")


def test_other_machines_and_no_key_is_warned_of(capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "AFN_API_KEYS", "")
    assert main(["serve", "--model", "m", "--host", "0.0.0.0", "--port", "70000"]) == 2
    assert "no key is asked for" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "AFN_API_KEYS", "one,two")
    assert main(["serve", "--model", "m", "--host", "0.0.0.0", "--port", "70000"]) == 2
    assert "no key" not in capsys.readouterr().err


def test_a_voice_folder_speaks(tmp_path):
    model, processor = tiny()
    small_voice(processor.tokenizer.get_vocab_size()).save_pretrained(tmp_path)
    thread = command.speech_thread(Namespace(voice=str(tmp_path), voice_streams=2), processor, model.device)
    thread.start()

    async def said():
        pcm = torch.from_numpy(noise(1.5)).float()
        with pytest.raises(ValueError, match="consent"):
            await thread.speaker(pcm, 16_000, "")
        async with thread.open(await thread.speaker(pcm, 16_000, "Ann, 1 May 2026")) as stream:
            stream.say(processor.tokenizer.encode("A dog barks.").ids)
            stream.end()
            return torch.cat([one async for one in stream])

    try:
        sound = asyncio.run(said())
        assert len(sound) > 0
        assert sound.isfinite().all()
        assert thread.engine.engine.pool.used == 0
    finally:
        thread.stop()
    tokens = processor.tokenizer.get_vocab_size()
    small_voice(9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"says 9 tokens and the tokenizer has {tokens}"):
        command.speech_thread(Namespace(voice=str(tmp_path), voice_streams=2), processor, model.device)
