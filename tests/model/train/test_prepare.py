"""What rank 0 finds out before anything trains."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from queue import Queue

import pytest
import torch
import torch.distributed as dist

from afn_distributed.process import Process
from afn_model.data import index
from afn_model.data.plan import Blend
from afn_model.train.curriculum import Start, read_curriculum
from afn_model.train.fingerprint import CHANGEABLE, as_json
from afn_model.train.prepare import DONE, Refused, agreed, cores, finished_stages, prepare, together
from afn_model.train.validate import data_config
from bench import resume


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    resume.prepare(folder)
    return folder


def test_a_context_that_the_model_has_not(desk):
    found = read_curriculum(desk / "tones.yaml")
    wide = replace(found.stages[0], context=1024, batch_tokens=4096)
    with pytest.raises(ValueError, match="stage all: context 1024 is more than the model's 512 positions"):
        prepare(found, [wide], desk / "base", show=False, strict=False)


def test_reward_functions_are_imported_before_the_first_step(desk, tmp_path, monkeypatch):
    """And not called: what they score is not there yet."""
    (tmp_path / "own_prepared.py").write_text("def good(*given): raise KeyError(given)")
    monkeypatch.syspath_prepend(tmp_path)
    found = read_curriculum(desk / "tones.yaml")
    for names, problem in (
        (["good"], ""),
        (["good", "other"], "own_prepared:other: cannot be imported: Attr"),
    ):
        functions = [f"own_prepared:{name}" for name in names]
        stage = replace(found.stages[0], method="grpo", batch_prompts=2, grpo={"functions": functions})
        with pytest.raises(ValueError, match=f"^stage all: reward {problem}") if problem else nullcontext():
            prepare(found, [stage], desk / "base", show=False, strict=False)


def test_missing_recordings_are_all_named_before_the_first_step(desk, tmp_path):
    lines = (desk / "tones.jsonl").read_text()
    (tmp_path / "tones.jsonl").write_text(lines)
    shutil.copy(desk / "7.wav", tmp_path / "7.wav")
    index.build(tmp_path / "tones.jsonl")
    found = read_curriculum(desk / "tones.yaml", tmp_path)
    with pytest.raises(ValueError) as caught:
        prepare(found, found.stages, desk / "base", show=False, strict=False)
    said = str(caught.value)
    assert said.startswith("47 recordings are missing: tones[0]: 0.wav: no such file; tones[1]: 1.wav: ")
    assert said.count("no such file") == 20
    assert said.endswith("; and 27 more")
    assert "7.wav" not in said.replace("17.wav", "")


def test_strict_turns_warnings_into_an_error(desk, capsys):
    found = read_curriculum(desk / "tones.yaml")
    few = [replace(found.stages[0], steps=3)]
    with pytest.warns(UserWarning, match="^all: only 3 optimiser steps"):
        prepare(found, few, desk / "base", show=True, strict=False)
    said = capsys.readouterr().out
    assert "all: 48 records" in said
    assert all(line.startswith("all: ") for line in said.splitlines())
    with pytest.raises(ValueError, match=r"^all: only 3 optimiser steps"):
        prepare(found, few, desk / "base", show=False, strict=True)


def finish(folder, stage, **changes):
    (folder / stage.name).mkdir(exist_ok=True)
    (folder / stage.name / DONE).write_text(json.dumps({"stage": as_json(stage) | changes}))


def test_a_finished_stage_with_other_settings(desk, tmp_path):
    stage = read_curriculum(desk / "tones.yaml").stages[0]
    assert finished_stages([stage], tmp_path) == set()
    finish(tmp_path, stage)
    assert finished_stages([stage], tmp_path) == {"all"}
    with pytest.raises(ValueError) as caught:
        finished_stages([replace(stage, lr=2e-3, steps=20, minutes=1.0)], tmp_path)
    said = str(caught.value)
    changes = "steps was 24, is 20; minutes was None, is 1.0; lr was 0.001, is 0.002"
    assert f"all: finished with other settings: {changes}; " in said
    assert said.endswith("--allow-changes steps,minutes,lr goes on with them, another run folder begins anew")
    with pytest.raises(ValueError, match=r"context was 192, is 64; take another run folder"):
        finished_stages([replace(stage, context=64)], tmp_path)
    with pytest.raises(ValueError, match="there is no checkpoint to go on from"):
        finished_stages([replace(stage, lr=2e-3)], tmp_path, ["lr"])
    (tmp_path / "all" / "checkpoints" / "step-00000024").mkdir(parents=True)
    assert finished_stages([replace(stage, lr=2e-3)], tmp_path, ["lr"]) == set()
    assert finished_stages([replace(stage, release_name="Instruct")], tmp_path) == {"all"}


def test_a_stage_that_others_started_from_is_not_made_longer(desk, tmp_path):
    one = read_curriculum(desk / "tones.yaml").stages[0]
    two = replace(one, name="next", start=Start("all"))
    finish(tmp_path, one)
    (tmp_path / "all" / "checkpoints" / "step-00000024").mkdir(parents=True)
    longer = [replace(one, steps=30), two]
    assert finished_stages(longer, tmp_path) == set()
    finish(tmp_path, two)
    assert finished_stages([one, two], tmp_path) == {"all", "next"}
    with pytest.raises(ValueError, match="next: started from all as it was, which would now go on: move this folder"):
        finished_stages(longer, tmp_path)


def test_a_finished_stage_of_another_seed_or_other_data(desk, tmp_path):
    found = read_curriculum(desk / "tones.yaml")
    stage = found.stages[0]
    finish(tmp_path, stage)
    file = tmp_path / "all" / DONE
    data = Blend(data_config(found, stage)).fingerprint()
    facts = json.loads(file.read_text()) | {"seed": found.seed, "data": data}
    file.write_text(json.dumps(facts))
    assert finished_stages([stage], tmp_path, (), found) == {"all"}
    with pytest.raises(ValueError, match=r"all: finished with other data: seed was 0, is 7; take another run folder"):
        finished_stages([stage], tmp_path, (), replace(found, seed=7))
    file.write_text(json.dumps(facts | {"data": dict.fromkeys(data, "0123")}))
    with pytest.raises(ValueError, match=r"all: finished with other data: tones was '0123', is '"):
        finished_stages([stage], tmp_path, (), found)


def test_a_field_that_is_newer_than_the_run_had_its_default(desk, tmp_path):
    stage = read_curriculum(desk / "tones.yaml").stages[0]
    finish(tmp_path, stage)
    facts = json.loads((tmp_path / "all" / DONE).read_text())
    del facts["stage"]["on_long"], facts["stage"]["bad_share"]
    (tmp_path / "all" / DONE).write_text(json.dumps(facts))
    assert finished_stages([stage], tmp_path) == {"all"}
    with pytest.raises(ValueError, match="on_long was 'cut', is 'drop'; take another run folder"):
        finished_stages([replace(stage, on_long="drop")], tmp_path)


def test_what_may_change_is_a_stage_field(desk):
    assert set(CHANGEABLE) < as_json(read_curriculum(desk / "tones.yaml").stages[0]).keys()


def test_rank_0_speaks_for_all(monkeypatch):
    """The others raise what it raises, as an error that need not be printed again."""
    sent = []
    monkeypatch.setattr("afn_distributed.process.broadcast_object", lambda value: sent.append(value) or sent[0])
    first, second = (Process(rank, 2, rank, torch.device("cpu"), True) for rank in (0, 1))

    def refuse():
        raise ValueError("in use")

    with pytest.raises(ValueError, match="in use") as caught:
        agreed(first, refuse)
    assert not isinstance(caught.value, Refused)
    with pytest.raises(Refused, match="in use"):
        agreed(second, lambda: pytest.fail("only rank 0 looks"))
    sent.clear()
    assert agreed(first, lambda: {"all"}) == agreed(second, lambda: None) == {"all"}


def test_an_error_of_one_rank_is_that_of_all(monkeypatch):
    """The first that has one says which it is; where none has, each goes on with what it found."""
    here = [Process(rank, 3, rank, torch.device("cpu"), True) for rank in range(3)]

    def fail():
        raise OSError("no such shard")

    texts = [None, "no such shard", "no such shard"]
    monkeypatch.setattr("afn_distributed.process.gather_objects", lambda value: texts)
    for rank, work in ((0, lambda: 0), (2, fail)):
        with pytest.raises(Refused, match=r"^rank 1: no such shard$"):
            together(here[rank], work)
    with pytest.raises(ValueError, match=r"^rank 1: no such shard$") as caught:
        together(here[1], fail)
    assert not isinstance(caught.value, Refused)
    monkeypatch.setattr("afn_distributed.process.gather_objects", lambda value: [value] * 3)
    assert [together(one, partial(int, one.rank)) for one in here] == [0, 1, 2]


def test_the_others_wait_outside_of_collectives(monkeypatch):
    store, said = dist.HashStore(), Queue()
    first, second = (Process(rank, 2, rank, torch.device("cpu"), True, store) for rank in (0, 1))
    begun = []

    def broadcast(value):
        begun.append(value)
        if value != (None, None):
            said.put(value)
        return said.get(timeout=60) if value == (None, None) else value

    monkeypatch.setattr("afn_distributed.process.broadcast_object", broadcast)
    monkeypatch.setattr("afn_model.train.prepare.POLL", 0.01)

    def look():
        while not store.check(["agreed/1"]):
            time.sleep(0.01)
        time.sleep(0.1)
        assert not begun, "rank 1 asks the store"
        return "found"

    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            other = pool.submit(agreed, second, lambda: pytest.fail("only rank 0 looks"))
            assert agreed(first, look) == other.result(60) == "found"
            begun.clear()


def test_more_workers_than_cores_are_not_started(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    assert cores() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 1
