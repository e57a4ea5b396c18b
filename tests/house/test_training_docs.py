"""What docs/training.md shows runs as shown, and what its tables say is what the code has."""

import contextlib
import io
import json
import os
import re
import shlex
import tarfile
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
import yaml

from afn_model.cli import main
from afn_model.cli.commands import COMMANDS
from afn_model.cli.options import Parser
from afn_model.data import index, records
from afn_model.scoring import rewards
from afn_model.scoring.judge import Endpoint
from afn_model.train.codec import CodecSettings
from afn_model.train.curriculum import Stage, read_curriculum
from afn_model.train.dpo import DPOSettings
from afn_model.train.eval_settings import METRICS, EvalSettings
from afn_model.train.grpo import GRPOSettings
from afn_model.train.reblend import Reblend
from afn_model.train.run_layout import RunLayout, read_layout
from afn_model.train.talker import TalkerSettings
from afn_model.train.values import find
from bench.resume import prepare
from tests.tiny import record

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "training.md"
TEXT = DOC.read_text(encoding="utf-8")
QUICK = {  # what the document shows, and what a test has time for
    "max_audio: 60": "max_audio: 5",
    "context: 8192": "context: 512",
    "batch_tokens: 131072": "batch_tokens: 512",
    "batch_tokens: 32768": "batch_tokens: 512",
    "batch_prompts: 64": "batch_prompts: 2\n    steps: 1",
    "chunk: 4096": "chunk: 64",
    "epochs: 3": "steps: 2",
    "max_new_tokens: 256": "max_new_tokens: 3",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


RECORDS = [json.loads(block) for block in blocks("json")]
CURRICULA = {re.match(r"# (\S+)\n", block)[1]: block for block in blocks("yaml")}
COMMAND_LINES = [
    line.partition(" #")[0].strip() for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()
]
SMALL = [line for line in COMMAND_LINES if "small" in line]  # test_sixty_clips.py runs them as they are
OURS = [line for line in COMMAND_LINES if line.startswith("afn ") and line not in SMALL]
TORCHRUN = [line for line in COMMAND_LINES if "torchrun" in line]


def table(first: str) -> dict[str, list[str]]:
    """Rows of the table whose first column is called so: first cell without its quotes to the other cells."""
    found = re.search(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]
    return {row[0].strip("` "): row[1:] for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A desk as the document has it: records with recordings, curricula, a small model with random weights."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("talks", "shards", "model"):
        (folder / name).mkdir()
    prepare(folder / "model")
    record(folder / "talks" / "0001.wav", 12.4)
    record(folder / "talks" / "0002.flac", 16, seed=1)
    record(folder / "clip-17.flac", 3, seed=2)
    with tarfile.open(folder / "shards" / "000.tar", "w") as tar:
        tar.add(folder / "clip-17.flac", "clip-17.flac")
    for name, chosen in (("talks", RECORDS[:2]), ("graded", RECORDS[2:3]), ("pairs", RECORDS[3:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(found) + "\n" for found in chosen))
    for name in ("graded", "pairs"):
        index.build(folder / f"{name}.jsonl", check=records.check, measure=True)
    for name, text in CURRICULA.items():
        for shown, quick in QUICK.items():
            assert any(shown in other for other in CURRICULA.values()), shown
            text = text.replace(shown, quick)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def said(folder):
    """What every command printed, run in the document's order, with fewer and smaller steps."""
    here, printed = os.getcwd(), {}
    os.chdir(folder)
    try:
        others = [f"afn train --curriculum {name}.yaml --base DIR --out runs/{name}" for name in ("post", "dpo")]
        for line in [*OURS, *others]:
            words = [{"DIR": "model/base"}.get(word, word) for word in shlex.split(line)[1:]]
            if words[0] == "train" and words[1] != "plot":
                words += ["--set", "workers=0", "--set", "log_every=1"]
            if words[0] == "ask":
                words += ["--max-new-tokens", "2"]
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = main(words)
            assert code == 0, f"{line}\n{out.getvalue()}"
            printed[line] = out.getvalue()
    finally:
        os.chdir(here)
    return printed


@pytest.mark.slow
def test_every_command_runs(folder, said):
    assert "talks.jsonl: 2 records" in said[next(line for line in OURS if "data index" in line)]
    assert "»" in said[next(line for line in OURS if "data inspect" in line)]
    for out, stage in (("talks", "finetune"), ("talks-lora", "lora"), ("post", "post"), ("dpo", "dpo")):
        home = folder / "runs" / out
        assert (home / stage / "done.json").is_file()
        assert (home / stage / "model" / "config.json").is_file()
        assert not (home / stage / "bad.jsonl").exists(), (home / stage / "bad.jsonl").read_text()
    assert (folder / "runs/talks-lora/lora/adapter/adapter_config.json").is_file()
    assert {path.name for path in (folder / "runs/talks/plots").iterdir()} >= {"losses.png", "throughput.png"}
    assert {path.name for path in (folder / "pictures").iterdir()} == {"lengths.png", "padding.png"}
    assert (folder / "OUT" / "config.json").is_file()


def test_the_log_has_the_columns_of_the_table(folder, said):
    documented = {name.strip("` ") for cell in table("column") for name in cell.split(",")}
    evaluated = {name.strip("` ") for cell in table("column of an evaluation") for name in cell.split(",")}
    rows = map(json.loads, (folder / "runs/first/lora/log.jsonl").read_text().splitlines())
    columns = {name for row in rows if "eval_loss" in row for name in row}
    always = {"stage", "step", "progress", "seconds", "left_s", "bad"}
    of_others = {"reward", "rewards", "accuracy", "reward_margin", "reward_chosen", "reward_rejected"}
    of_others |= {"mel_distance", "frames", "end", "first"}
    assert columns - always | {f"eval_{name}" for name in {*METRICS, *of_others}} == evaluated
    found = set()
    for log in (folder / "runs").glob("*/*/log.jsonl"):
        found |= json.loads(log.read_text().splitlines()[0]).keys()
    asked = {"judge_asked", "judge_failed", "own_asked", "own_failed"}
    of_asr = {"loss_ctc", "ctc_texts", "ctc_short"}  # tests/model/train/test_asr.py
    # tests/model/train/test_codec.py and test_talker.py
    terms = {"mel", "spectrum", "adversarial", "feature", "commitment", "codebook", "discriminators"}
    terms |= {"frames", "end", "first"}
    of_voices = {f"loss_{term}" for term in terms} | {"codes_used"}
    assert found | asked | of_asr | of_voices | {"counted", "draws"} == documented


def test_python_blocks_run(folder, said, monkeypatch):
    monkeypatch.chdir(folder)
    for block in blocks("python"):
        if "write_world" in block:
            continue
        if "from peft" in block:
            pytest.importorskip("peft")
        scope = {"base": "model/base"}
        exec(compile(block, DOC.name, "exec"), scope)
        assert isinstance(scope["model"], torch.nn.Module)


@pytest.mark.parametrize("line", TORCHRUN)
def test_what_torchrun_starts_is_there(tmp_path, line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in CURRICULA.items():
        Path(name).write_text(text)
    before, _, after = line.partition(" -m afn_model.cli train ")
    parser = Parser()
    for add in COMMANDS["train"].options:
        add(parser)
    args = parser.parse_args(shlex.split(after))
    layout = read_layout(args.layout)
    counts = [int(count) for count in re.findall(r"--(?:nnodes|nproc-per-node) (\d+)", before)]
    ranks = counts[0] * (counts[1] if len(counts) > 1 else 1)
    assert ranks % (layout.shard or 1) == 0
    for stage in read_curriculum(args.curriculum).stages:
        assert stage.bins % ranks == 0, f"{stage.name}: {stage.bins} for {ranks} ranks"


def test_commands_in_the_text_exist():
    found = re.findall(r"`afn ([^`]+)`", TEXT)
    assert found
    for words in found:
        assert words.split()[0] in COMMANDS or " ".join(words.split()[:2]) in COMMANDS, words


@pytest.mark.parametrize("shown", RECORDS, ids=lambda shown: shown["id"])
def test_records_pass_the_check(shown):
    records.check(shown)
    rewards.check(shown.get("rewards", ()))


def test_record_fields_are_all_in_the_table():
    known = {"id", "sound", "conversations", "audios", "messages", "duration", "rewards", "truth", "events"} | {
        "chosen",
        "rejected",
    }
    named = {name.strip("` ") for cell in table("record field") for name in cell.split(",")}
    assert named == known | {"axis", "task", "source"}
    assert f"Axes used here: {', '.join(records.AXES)}." in " ".join(TEXT.split())


@pytest.mark.parametrize("name", sorted(CURRICULA.keys() - {"small.yaml"}))
def test_curricula_are_read_as_they_are_shown(folder, tmp_path, name):
    (tmp_path / name).write_text(CURRICULA[name])
    found = read_curriculum(tmp_path / name, folder)
    assert all(path.is_file() for path in found.datasets.values())
    for stage in found.stages:
        GRPOSettings(**stage.grpo)
        DPOSettings(**stage.dpo)


def plain(value):
    """A default as YAML has it."""
    value = str(value) if type(value).__name__ == "Start" else value
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ("stage field", Stage),
        ("layout field", RunLayout),
        ("eval setting", EvalSettings),
        ("reblend setting", Reblend),
        ("GRPO setting", GRPOSettings),
        ("DPO setting", DPOSettings),
        ("codec setting", CodecSettings),
        ("talker setting", TalkerSettings),
        ("judge field", Endpoint),
    ],
)
def test_tables_have_every_field_and_its_default(first, kind):
    rows = table(first)
    assert set(rows) == {field.name for field in fields(kind)}
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        shown = rows[field.name][0]
        if default is MISSING:
            assert shown == "required", field.name
        else:
            found = yaml.safe_load(shown.strip("`"))
            assert (found, type(found)) == (plain(default), type(plain(default))), field.name


def test_the_table_of_rewards_is_the_codes():
    rows = table("reward")
    assert tuple(rows) == rewards.KINDS
    for kind, cells in rows.items():
        example = json.loads(cells[0].strip("`"))
        assert example["kind"] == kind
        rewards.check([example])
    listed = re.search(r"Constraints: (.*?)\.\n", TEXT, re.S)[1]
    assert set(rewards.CONSTRAINTS) <= set(re.findall(r"`(\w+)`", listed))


def test_the_seven_stages_are_those_of_afnext():
    stages = read_curriculum("afnext").stages
    rows = table("stage")
    assert list(rows) == [stage.name for stage in stages]
    for stage, (trains, start, audio, context, method, becomes) in zip(stages, rows.values(), strict=True):
        assert trains.split(", ") == list(stage.trains)
        assert start == str(stage.start)
        assert audio == f"{stage.max_audio:,.0f} s"
        assert context == f"{stage.context:,}"
        assert method == stage.method
        assert becomes.strip("| ") == stage.release_name


def test_layouts_that_are_named_come_with_the_package():
    for path in find("cpu", "layouts").parent.glob("*.yaml"):
        assert f"`{path.stem}`" in TEXT


def test_messages_are_those_of_the_code():
    files = [*(ROOT / "afn_model").rglob("*.py"), *(ROOT / "distributed").rglob("*.py")]
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", file.read_text("utf-8")) for file in files)
    source = source.replace("{SOUND}", "<sound>")
    for message in table("message"):
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
        assert re.search(r".*?".join(parts), source), message


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#][^)]*)\)", TEXT))
def test_links_exist(link):
    assert (DOC.parent / link).exists()


def test_anchors_and_make_targets_exist():
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", TEXT, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= headings
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", TEXT):
        assert re.search(rf"^{target}:", makefile, re.M), target
