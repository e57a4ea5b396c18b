"""Runs in processes of their own that are killed: a short form of ``bench.resume``."""

import itertools
import json

import pytest
import torch

from afn_model.cli import main
from afn_model.data import index
from bench import resume
from bench.resume import alone_killed, command, finish, killed, other_ranks, prepare, rank_killed, undisturbed
from tests.budget import largest, note
from tests.distributed.ranks import WarmCommand
from tests.orders import in_orders

STEPS = 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    prepare(folder, width=128, steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "start", WarmCommand)
        return undisturbed(folder)


@pytest.fixture
def warm(monkeypatch):
    monkeypatch.setattr(resume, "start", WarmCommand)


def test_sigkill_changes_no_bit(folder, reference, warm):
    rows = killed(folder, reference, kills=2)
    assert [row["moment"] for row in rows] == ["between", "while a checkpoint is written"]


def test_one_rank_then_four_that_share_every_sequence(folder, reference, warm):
    """Ulysses 2 x ring 2, audio included. The losses are those of one process, within other orders of summation."""
    numbers = itertools.count()

    def in_another_order() -> list[str]:
        if not (number := next(numbers)):
            return reference
        run = folder / f"order-{number}"
        assert not main(command(folder, run, every=STEPS)[3:])
        return resume.losses(run)

    moved = [resume.worst(one, reference) for one in in_orders(in_another_order, 3)[1:]]
    budget = 2 * largest(moved) + 2 * torch.finfo(torch.float32).eps
    found = other_ranks(folder, reference, (1, 4), layout=("ulysses=2", "ring=2"), every=STEPS // 2)
    note(found["worst_relative_error_of_loss"] / budget)
    assert found["worst_relative_error_of_loss"] <= budget, (found, budget)


def test_one_of_two_ranks_is_killed(folder):
    found = rank_killed(folder)
    assert found["seconds_until_all_stopped"] < 30
    assert found["went_on_from_a_checkpoint"]
    assert found["steps"] == STEPS
    assert found["workers"] == 4
    assert found["left"] == 0


def test_a_killed_run_leaves_no_process_and_no_pipe(folder):
    found = alone_killed(folder)
    assert found["workers"] == 2
    assert found["left"] == 0
    assert found["seconds_until_pipe_ended"] < 10, "a shell's `| tee` would wait for ever"


def test_grpo_on_two_ranks_is_grpo_on_one(tmp_path, warm):
    """The same answers to the same prompts, and with them the same losses."""
    prepare(tmp_path, steps=3)
    records = [json.loads(line) for line in (tmp_path / "tones.jsonl").read_text().splitlines()]
    for record in records:
        asked, said = (turn["value"] for turn in record.pop("conversations"))
        record["audios"] = [{"path": record.pop("sound")}]
        record["messages"] = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        record["rewards"] = [{"kind": "constraint", "name": "words", "max": 3}]
    (tmp_path / "tones.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    index.build(tmp_path / "tones.jsonl")
    plan = (tmp_path / "tones.yaml").read_text()
    settings = "{group: 4, max_new_tokens: 6, prompts: 2, dynamic_sampling: 2}"
    grpo = f"method: grpo\n    batch_prompts: 4\n    grpo: {settings}\n    "
    (tmp_path / "tones.yaml").write_text(plan.replace("trains: all", f"{grpo}trains: all"))
    found = []
    for ranks in (1, 2):
        run, log = tmp_path / f"run-{ranks}", tmp_path / f"{ranks}.log"
        if ranks == 1:
            assert not main(command(tmp_path, run)[3:])
        else:
            finish(resume.start(command(tmp_path, run, ranks), log), log)
        found.append([json.loads(line) for line in (run / "all" / "log.jsonl").read_text().splitlines()])
    for one, two in zip(*found, strict=True):
        assert one["reward"] == pytest.approx(two["reward"])
        for name in ("tokens", "draws", "groups_drawn", "groups_equal", "groups_kept"):
            assert one[name] == two[name], name
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3, abs=1e-5)
    assert any(row["grad_norm"] for row in found[0])
    assert any(row["draws"] > 1 for row in found[0])
    for ranks in (1, 2):
        kept = [
            json.loads(line) for line in (tmp_path / f"run-{ranks}" / "all" / "answers.jsonl").read_text().splitlines()
        ]
        assert [row["step"] for row in kept] == [0, 0, 1, 1, 2, 2]
        assert all(len(row["answers"]) == 4 for row in kept)
