"""Whether a run that is killed goes on as if nothing had happened.

    python -m bench.resume --out bench/results/cpu/resume.jsonl [--kills 20]

A small model is trained in a process of its own, which SIGKILL ends at random moments, and started again until it is
done; its losses must be those of an undisturbed run, bit for bit. The same corpus is then trained on by 1, 2 and 4
ranks in turn, by four ranks that share every sequence, and by two of which one is killed while torchrun watches. What
is killed must leave no process behind.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from afn_model import AFNext, AFNextProcessor
from afn_model.config import AudioConfig, TextConfig, preset
from afn_model.data import index
from afn_model.files import write_rows
from afn_model.prompt.tokenizer import make_tokenizer

STEPS, EVERY, BINS = 24, 3, 4
RANKS = (1, 2, 4)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
STAGE = f"""
datasets: {{tones: tones.jsonl}}
stages:
  all:
    trains: all
    context: 192
    batch_tokens: {192 * BINS}
    chunk: 40
    lr: 1e-3
    epochs: .inf
    steps: STEPS
    blend: {{tones: 1}}
"""


def prepare(folder: Path, seed: int = 0, width: int = 32, steps: int = STEPS) -> None:
    """A corpus of tones to name, a tiny model with random weights, and a curriculum of one stage."""
    rng, lines = np.random.default_rng(seed), []
    names = ("low", "middle", "high")
    for number in range(48):
        kind = int(rng.integers(3))
        t = np.arange(int(rng.uniform(0.5, 2.5) * 16_000)) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * 200 * 4**kind * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        talk = [{"from": "human", "value": "<sound>\nWhich tone?"}, {"from": "gpt", "value": f"a {names[kind]} tone"}]
        lines.append({"id": str(number), "sound": f"{number}.wav", "duration": len(t) / 16_000, "conversations": talk})
    (folder / "tones.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index.build(folder / "tones.jsonl")
    tokenizer = make_tokenizer(["Which tone? a low middle high tone system user assistant"] * 2, 300)
    processor = AFNextProcessor(tokenizer, chat_template=TEMPLATE)
    torch.manual_seed(seed)
    config = replace(
        preset("tiny"),
        audio=AudioConfig(width=width, layers=1, heads=2, ffn=2 * width),
        text=TextConfig(tokenizer.get_vocab_size(), width, 2, 2, kv_heads=1, ffn=2 * width, max_positions=512),
        audio_token_id=processor.token_id("<sound>"),
    )
    AFNext(config).save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    stage = STAGE.replace("STEPS", str(steps))
    (folder / "tones.yaml").write_text(stage)
    # An epoch whose plan is longer than a pipe holds: a worker is writing one at almost any time.
    (folder / "long.yaml").write_text(stage.replace("{tones: 1}", "{tones: 100}").replace("chunk: 40", "chunk: 4096"))


def command(
    folder: Path,
    run: Path,
    ranks: int = 1,
    restarts: int = 0,
    every: int = EVERY,
    layout: Sequence[str] = (),
    plan: str = "tones.yaml",
) -> list[str]:
    """``afn train`` on what ``prepare`` made, by so many ranks; ``layout`` has more KEY=VALUE."""
    head = [sys.executable, "-m"]
    if ranks > 1 or restarts:
        head += [
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            f"--max-restarts={restarts}",
            "-m",
        ]
    changes = [f"--set={x}" for x in (f"checkpoint_every={every}", "log_every=1", "workers=0", *layout)]
    files = ["--curriculum", str(folder / plan), "--base", str(folder / "base"), "--out", str(run)]
    return [*head, "afn_model.cli", "train", *files, "--layout", "cpu", *changes]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    # Without the second, gloo sometimes waits for ever where torchrun starts the ranks again.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        arguments, stdout=log.open("a"), stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def finish(process: subprocess.Popen, log: Path, seconds: float = 300) -> None:
    """Waits for a run that has to succeed."""
    if process.wait(seconds):
        raise RuntimeError(f"the run failed:\n{log.read_text()[-3000:]}")


def steps(folder: Path) -> int:
    """Of the runs in a folder that ``prepare`` made."""
    return yaml.safe_load((folder / "tones.yaml").read_text())["stages"]["all"]["steps"]


def losses(run: Path) -> list[str]:
    """Every step's loss and gradient norm, to the last bit."""
    rows = [json.loads(line) for line in (run / "all" / "log.jsonl").read_text().splitlines()]
    if [row["step"] for row in rows] != list(range(steps(run.parent))):
        raise RuntimeError(f"{run}: the log has steps {[row['step'] for row in rows]}")
    return [f"{row['loss']!r} {row['grad_norm']!r}" for row in rows]


def killed(folder: Path, reference: list[str], kills: int, seed: int = 0, on_kill=lambda row: None) -> list[dict]:
    """Kills a run at random moments, half of them while a checkpoint is being written; returns a row per kill."""
    rng, rows, run, log = random.Random(seed), [], folder / "killed", folder / "killed.log"
    while len(rows) < kills:
        process, moment = start(command(folder, run, every=1 if len(rows) % 2 else EVERY), log), "between"
        saves = run / "all" / "checkpoints"
        before = set(saves.glob("step-*"))
        if len(rows) % 2:
            moment = "while a checkpoint is written"
            while process.poll() is None and not list(saves.glob(".step-*")):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        else:
            while process.poll() is None and set(saves.glob("step-*")) <= before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
        partial = [path.name for path in saves.glob(".step-*")]
        ended = process.poll() is not None
        kill(process)
        if ended:  # the run was done before its kill: begin another one
            check(run, reference, log)
            run = folder / f"killed-{len(rows)}"
            continue
        steps = sorted(int(path.name.removeprefix("step-")) for path in saves.glob("step-*"))
        rows.append({"kill": len(rows) + 1, "moment": moment, "partial": partial, "checkpoints": steps})
        on_kill(rows[-1])
    finish(start(command(folder, run), log), log)
    check(run, reference, log)
    return rows


def kill(process: subprocess.Popen) -> None:
    """Ends a run and all that it has started, if it has not ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(run: Path, reference: list[str], log: Path) -> None:
    if losses(run) != reference:
        raise RuntimeError(f"{run}: not the losses of the undisturbed run\n{log.read_text()[-2000:]}")


def undisturbed(folder: Path, name: str = "reference") -> list[str]:
    run, log = folder / name, folder / f"{name}.log"
    finish(start(command(folder, run), log), log)
    return losses(run)


def other_ranks(
    folder: Path, reference: list[str], plan: Sequence[int] = RANKS, layout: Sequence[str] = (), every: int = 4
) -> dict:
    """One run by several numbers of ranks in turn, the last by ``layout``: the largest relative error of a loss.

    Each goes on for an equal part of the steps.
    """
    run, log = folder / "ranks", folder / "ranks.log"
    for number, ranks in enumerate(plan, 1):
        last, until = number == len(plan), number * steps(folder) // len(plan)
        process = start(command(folder, run, ranks, every=every, layout=layout if last else ()), log)
        while not last and process.poll() is None and not (run / "all" / "checkpoints" / f"step-{until:08d}").exists():
            time.sleep(0.01)
        if last:
            finish(process, log)
        else:
            kill(process)
    return {"ranks": list(plan), "worst_relative_error_of_loss": worst(losses(run), reference)}


def shared(folder: Path, reference: list[str], ulysses: int, ring: int) -> dict:
    """One run by ulysses · ring ranks that share every sequence: the largest relative error of a loss."""
    run, log = folder / f"shared-{ulysses}-{ring}", folder / f"shared-{ulysses}-{ring}.log"
    layout = (f"ulysses={ulysses}", f"ring={ring}")
    finish(start(command(folder, run, ulysses * ring, layout=layout), log), log)
    error = worst(losses(run), reference)
    return {"ulysses": ulysses, "ring": ring, "data": 1, "worst_relative_error_of_loss": error}


def worst(found: list[str], wanted: list[str]) -> float:
    """Largest relative error of a loss."""
    pairs = [(float(a.split()[0]), float(b.split()[0])) for a, b in zip(found, wanted, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def alone_killed(folder: Path) -> dict:
    """Kills a run that somebody reads through a pipe: seconds until the pipe ends, and processes left then."""
    endless = (folder / "long.yaml").read_text().replace(f"steps: {steps(folder)}", "steps: 100000")
    (folder / "endless.yaml").write_text(endless)
    arguments = command(folder, folder / "alone", layout=("workers=1",), plan="endless.yaml")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    assert process.stdout is not None
    while b" step " not in (line := process.stdout.readline()):
        if not line:
            raise RuntimeError("the run ended before its first step")
    time.sleep(2)  # for the planner to be writing
    workers = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    killed = time.perf_counter()
    ended = threading.Thread(target=process.stdout.read, daemon=True)
    ended.start()
    ended.join(30)
    stopped = time.perf_counter() - killed
    process.wait()
    return {"workers": len(workers), "seconds_until_pipe_ended": round(stopped, 2), "left": left_of(workers)}


def left_of(pids: Sequence[int], seconds: float = 10) -> int:
    """How many of some processes still run after so many seconds; those are ended then."""
    until = time.perf_counter() + seconds
    while any(map(alive, pids)) and time.perf_counter() < until:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def rank_killed(folder: Path) -> dict:
    """Kills one of two ranks under torchrun: seconds until the other is gone, and until the run is done."""
    run, log = folder / "one-killed", folder / "one-killed.log"
    process = start(command(folder, run, ranks=2, restarts=1, layout=("workers=1",), plan="long.yaml"), log)
    saves = run / "all" / "checkpoints"
    while process.poll() is None and not list(saves.glob("step-*")):
        time.sleep(0.01)
    ranks = [pid for pid in children(process.pid) if "afn_model.cli" in arguments_of(pid)]
    workers = [pid for rank in ranks for pid in descendants(rank)]
    os.kill(ranks[-1], signal.SIGKILL)
    killed = time.perf_counter()
    while any(alive(pid) for pid in ranks):
        time.sleep(0.02)
    stopped = time.perf_counter() - killed
    left = left_of(workers)
    finish(process, log)
    text = log.read_text()
    return {
        "ranks": 2,
        "workers": len(workers),
        "left": left,
        "seconds_until_all_stopped": round(stopped, 2),
        "seconds_until_done": round(time.perf_counter() - killed, 2),
        "went_on_from_a_checkpoint": "goes on from step" in text,
        "steps": len(losses(run)),
    }


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return sorted(found)


def arguments_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, width=128)
        reference = undisturbed(folder)
        rows = [{"what": "the same run twice", "bit_identical": undisturbed(folder, "again") == reference}]
        kills = killed(folder, reference, args.kills, on_kill=print)
        rows.append({"what": "SIGKILL", "kills": kills, "losses_bit_identical_after_all": True})
        rows.append({"what": "another number of ranks"} | other_ranks(folder, reference))
        rows.append({"what": "ranks that share every sequence"} | shared(folder, reference, 2, 2))
        rows.append({"what": "one of two ranks killed"} | rank_killed(folder))
        rows.append({"what": "a run that is read through a pipe killed"} | alone_killed(folder))
    for row in rows:
        print(json.dumps(row))
    if args.out:
        write_rows(args.out, rows)


if __name__ == "__main__":
    main()
