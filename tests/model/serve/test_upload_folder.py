"""Uploads in a folder: another server finds them, and what is not whole is not there."""

import asyncio
import os

import numpy as np
import torch

from afn_model.serve.recording import Recording
from afn_model.serve.upload_folder import UploadFolder
from afn_model.serve.uploads import Uploads
from tests.model.serve.serving import in_process, tiny_server, wav


def recording(letter: str, samples: int = 1000) -> Recording:
    pcm = torch.arange(samples).float() / samples
    return Recording(letter * 64, pcm, (b"digest",), ("its last frame is incomplete",))


def test_another_server_finds_it(tmp_path):
    first, second = (Uploads(10**6, UploadFolder(tmp_path, 10**6)) for _ in range(2))
    kept = first.add("owner", recording("a"), 77)
    first.save("owner", kept)
    found = second.find("owner", "a" * 64)
    assert torch.equal(found.recording.pcm, kept.recording.pcm)
    assert found.recording.digests == kept.recording.digests
    assert found.shown() == kept.shown()
    assert second.of("owner") == [found]
    for owner, id in (("", "a" * 64), ("other", "a" * 64), ("owner", "../owner/" + "a" * 64), ("owner", "b" * 64)):
        assert second.find(owner, id) is None
    assert first.remove("owner", "a" * 64)
    assert Uploads(10**6, UploadFolder(tmp_path, 10**6)).find("owner", "a" * 64) is None
    assert not list(tmp_path.rglob("*.*"))


def test_what_is_pushed_out_of_memory_is_still_there(tmp_path):
    uploads = Uploads(5000, UploadFolder(tmp_path, 10**6))
    for letter in "abc":
        uploads.save("", uploads.add("", recording(letter)))
    assert uploads.bytes == 4000
    assert uploads.find("", "a" * 64) is not None
    assert [one.recording.id[0] for one in uploads.of("")] != []


def test_the_least_recently_used_go_first(tmp_path):
    folder = UploadFolder(tmp_path, 3 * 4128)
    for at, letter in enumerate("abc"):
        folder.save("", recording(letter), {})
        for file in tmp_path.rglob(f"{letter * 64}.*"):
            os.utime(file, (1000 + at, 1000 + at))
    assert folder.load("", "a" * 64) is not None  # used now
    folder.save("", recording("d"), {})
    assert {id[0] for id in folder.ids("")} == {"a", "c", "d"}


def test_nobody_pushes_out_what_others_keep(tmp_path):
    folder = UploadFolder(tmp_path, 3 * 4128)
    folder.save("one", recording("a"), {})
    for file in tmp_path.rglob("*.npy"):
        os.utime(file, (1000, 1000))
    for letter in "bcde":
        folder.save("other", recording(letter), {})
    assert ([id[0] for id in folder.ids("one")], len(folder.ids("other"))) == (["a"], 2)


def test_what_is_not_whole_is_not_there(tmp_path):
    folder = UploadFolder(tmp_path, 10**6)
    folder.save("", recording("a"), {"size": 3})
    (samples,) = tmp_path.rglob("*.npy")
    whole = samples.read_bytes()
    samples.write_bytes(whole[:-1])
    assert folder.load("", "a" * 64) is None
    np.save(samples, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    assert folder.load("", "a" * 64) is None, "nothing is unpickled"
    samples.write_bytes(whole)
    samples.with_suffix(".json").write_text("{")
    assert folder.load("", "a" * 64) is None
    samples.with_suffix(".json").unlink()
    assert (folder.load("", "a" * 64), folder.ids("")) == (None, [])


def test_a_question_to_a_server_that_did_not_take_it(tmp_path):
    settings = {"upload_folder": str(tmp_path), "max_new_tokens": 4}

    async def asked():
        async with in_process(tiny_server(**settings)) as client:
            id = (await client.post("/v1/audio", content=wav(1.0))).json()["id"]
        async with in_process(tiny_server(**settings)) as client:
            parts = [{"type": "audio_url", "audio_url": {"url": f"afn://sha256/{id}"}}, {"type": "text", "text": "?"}]
            body = {"messages": [{"role": "user", "content": parts}]}
            reply = await client.post("/v1/chat/completions", json=body)
            return reply.json()["usage"]["prompt_tokens_details"]["audio_tokens"]

    assert asyncio.run(asked()) == 25
