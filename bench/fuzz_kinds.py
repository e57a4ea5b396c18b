"""What is fuzzed: for each kind a folder of whole files, and how the library reads it."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from afn_model import AFNext, AFNextProcessor
from afn_model.audio.shards import read_member
from afn_model.bootstrap.tiny import build
from afn_model.config import AudioConfig
from afn_model.data.index import parse
from afn_model.data.records import check, parse_sample
from afn_model.files import write_json
from afn_model.prompt.conversation import Turn
from afn_model.prompt.template import DEFAULT_TEMPLATE, ChatTemplate
from afn_model.train import lora
from afn_model.train.curriculum import read_curriculum
from afn_model.weights import checkpoint
from afn_model.weights.config_json import read_config, to_json

OURS = {
    "id": "1", "axis": "skills", "task": "what", "duration": 1.5,
    "audios": [{"path": "a.wav", "start": 0.5, "end": 2.0}],
    "messages": [{"role": "user", "content": "<sound>\nWhat?"}, {"role": "assistant", "content": "A dog."}],
    "rewards": [{"kind": "exact", "answer": "A dog."}], "truth": {"what": "dog"}, "events": [[0.5, 1.0, "dog"]],
}  # fmt: skip
PUBLIC = {
    "id": "2", "sound": ["a.wav", "b.tar#c.wav"], "duration": [1.0, 2.5],
    "conversations": [{"from": "human", "value": "<sound-1> or <sound-2>?"}, {"from": "gpt", "value": "The second."}],
}  # fmt: skip
PARTS = {
    "messages": [
        {"role": "system", "content": "Listen."},
        {"role": "user", "content": [{"type": "audio", "path": "a.wav", "start": 1}, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "Rain."},
    ],
}
CURRICULUM = {
    "name": "c", "seed": 1, "datasets": {"talks": "talks.jsonl", "more": "more.jsonl"}, "defaults": {"context": 64},
    "stages": {
        "one": {"trains": ["adaptor"], "blend": {"talks": 1}, "epochs": 1, "lr": 1e-3, "batch_tokens": 128,
                "betas": [0.9, 0.95], "max_audio": 30, "warmup": 0.1, "clip": 1.0, "chunk": 8},
        "two": {"trains": "all", "blend": {"like": "one", "times": 0.5, "more": 1}, "steps": 3, "lr": 1e-4,
                "batch_tokens": 64, "start": {"stage": "one", "at": 0.5}, "layout": {"workers": 0}},
        "three": {"method": "grpo", "trains": ["language_model"], "blend": {"talks": 1}, "steps": 2, "lr": 1e-5,
                  "batch_prompts": 2, "start": "two", "lora": {"rank": 2, "alpha": 4}, "grpo": {"group": 2}},
    },
}  # fmt: skip
OUTSIDE = "outside.safetensors"  # beside the folder of the weights, for names that lead there
TURNS = [Turn("user", ("hello",)), Turn("assistant", ("hi",)), Turn("user", ("what?",))]


@dataclass(frozen=True)
class Attempt:
    """Files of a folder that are mutated, one at a time, and what reads the folder and looks at the result.

    ``read`` raises ValueError or OSError where it refuses, and AssertionError where what it got is not whole.
    """

    files: tuple[str, ...]
    read: Callable[[Path], object]


def tiny_model() -> tuple[AFNext, AFNextProcessor]:
    like, processor = build(0)
    small = replace(like.config, audio=AudioConfig(width=32, layers=2, heads=2, ffn=64, max_positions=100))
    torch.manual_seed(0)
    return AFNext(replace(small, text=replace(small.text, width=32, ffn=64, layers=2))), processor


def records(folder: Path) -> Attempt:
    _, processor = build(0)
    files = {"ours.json": OURS, "public.json": PUBLIC, "parts.json": PARTS}
    for name, record in files.items():
        write_json(folder / name, record)
    whole = {name: (folder / name).read_bytes() for name in files}

    def read(home: Path) -> None:
        changed = [file for name in files if (file := home / name).read_bytes() != whole[name]]
        for file in changed or [home / "ours.json"]:
            record = parse(file.read_bytes())
            check(record)
            sample = parse_sample(record, home)
            messages = record.get("messages", record.get("conversations"))
            assert len(sample.turns) == len(messages), "turns are missing"
            processor.text_tokens(sample.turns)

    return Attempt(tuple(files), read)


def configs(folder: Path) -> Attempt:
    model, _ = tiny_model()
    write_json(folder / "config.json", to_json(model.config, "float32"))
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2], "repetition_penalty": 1.1})
    return Attempt(("config.json", "config.json", "generation_config.json"), read_config)


def curricula(folder: Path) -> Attempt:
    (folder / "c.yaml").write_bytes(json.dumps(CURRICULUM).encode())

    def read(home: Path) -> None:
        found = read_curriculum(home / "c.yaml")
        with (home / "c.yaml").open("rb") as file:
            assert len(found.stages) == len(yaml.safe_load(file)["stages"]), "stages are missing"
        for stage in found.stages:
            own = isinstance(stage.name, str) and Path(stage.name).name == stage.name not in ("", ".", "..")
            assert own, f"a stage's name is no name of a folder: {stage.name!r:.80}"

    return Attempt(("c.yaml",), read)


def adapters(folder: Path) -> Attempt:
    model, _ = tiny_model()
    plain = {name: model.get_submodule(name) for name, x in model.named_modules() if isinstance(x, torch.nn.Linear)}
    lora.add(model, 2, 4, ("q_proj", "v_proj"))
    lora.save(model, folder)
    count = len(lora.adapters(model))

    def restore() -> None:
        for name in lora.adapters(model):
            model.set_submodule(name, plain[name])

    def read(home: Path) -> None:
        restore()
        try:
            lora.load(model, home)
        except Exception:
            assert not lora.adapters(model), "an adapter that is refused has changed the model"
            raise
        assert len(lora.adapters(model)) == count, "adapters are missing"

    return Attempt((lora.CONFIG, lora.CONFIG, lora.WEIGHTS), read)


def templates(folder: Path) -> Attempt:
    (folder / "chat_template.jinja").write_bytes(DEFAULT_TEMPLATE.read_bytes())

    def read(home: Path) -> None:
        try:
            source = (home / "chat_template.jinja").read_bytes().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError(str(error)) from None
        ChatTemplate(source).render(TURNS, True)

    return Attempt(("chat_template.jinja",), read)


def processors(folder: Path) -> Attempt:
    model, processor = tiny_model()
    processor.save_pretrained(folder)
    write_json(folder / "config.json", to_json(model.config, "float32"))
    files = ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja", "config.json")

    def read(home: Path) -> None:
        found = AFNextProcessor.from_pretrained(home)
        found.decode(found([{"role": "user", "content": "hello, what?"}]).input_ids)

    return Attempt(files, read)


def tars(folder: Path) -> Attempt:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in ("one.wav", "two.wav"):
            member = tarfile.TarInfo(name)
            member.size = 3000
            archive.addfile(member, io.BytesIO(name[:1].encode() * 3000))
    read_member(f"{folder / 'a.tar'}#one.wav")
    numbers = itertools.count()

    def read(home: Path) -> None:
        tar = home / f"{next(numbers)}.tar"  # a process keeps the tar files it has opened
        tar.write_bytes((home / "a.tar").read_bytes())
        index = Path(f"{tar}.index")
        index.write_bytes((home / "a.tar.index").read_bytes())
        try:
            for name in ("one.wav", "two.wav"):
                data = read_member(f"{tar}#{name}")
                assert len(data) == 3000, f"{len(data)} of 3000 bytes of {name}"
        finally:
            tar.unlink()
            index.unlink(missing_ok=True)

    return Attempt(("a.tar", "a.tar.index"), read)


def weights(folder: Path) -> Attempt:
    model, processor = tiny_model()
    model.save_pretrained(folder)
    processor.tokenizer.save(str(folder / "tokenizer.json"))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, keys in shards.items():
        save_file({key: tensors[key].clone() for key in keys}, folder / name)
    save_file({names[0]: tensors[names[0]].clone()}, folder.parent / OUTSIDE)
    index = {"metadata": {}, "weight_map": {key: name for name, keys in shards.items() for key in keys}}
    write_json(folder / "model.safetensors.index.json", index)

    def read(home: Path) -> None:
        assert all(file.parent == home for file in checkpoint.shard_files(home)), "weights outside of the folder"
        found = checkpoint.load(AFNext, home)
        assert {p.device.type for p in found.parameters()} == {"cpu"}, "weights are missing"

    return Attempt(("model.safetensors.index.json", "config.json", "tokenizer.json", *shards, *shards), read)


KINDS: dict[str, Callable[[Path], Attempt]] = {
    "records": records,
    "configs": configs,
    "curricula": curricula,
    "adapters": adapters,
    "templates": templates,
    "processors": processors,
    "tars": tars,
    "weights": weights,
}
