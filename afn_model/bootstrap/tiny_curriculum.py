"""All seven stages at tiny scale on a CPU, from nothing to Captioner, Instruct and Think, evaluated after every stage.

    python -m afn_model.bootstrap.tiny_curriculum --out runs/curriculum [--seed 0] [--scale 1.0] [--until STAGE]

Writes corpora of the synthetic world, gives encoder and language model a short start, runs the trainer on
``curricula/tiny.yaml`` and asks the model of every stage about held-out voices, scenes and phrasings. A run that was
stopped goes on; one that ended after ``--until`` goes on without having lost any time.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from afn_model import AFNext, AFNextProcessor
from afn_model.bootstrap.fit import Part, Trainee, fit
from afn_model.bootstrap.lessons import Lessons
from afn_model.bootstrap.tiny import SYSTEM, untrained
from afn_model.eval.heldout import answer
from afn_model.files import write_json
from afn_model.host import machine
from afn_model.scoring import rewards
from afn_model.scoring.metrics import by_axis, score, timestamps
from afn_model.train.curriculum import Curriculum, Stage, read_curriculum
from afn_model.train.run_layout import read_layout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from afn_model.train.validate import MODEL
from afn_model.world.build import write_world
from afn_model.world.scene import DETAILS, LABELS
from afn_model.world.tasks.think import direct
from afn_model.world.texts import texts

TRAIN = {
    "music": 875,
    "talkers": 1125,
    "long": 750,
    "skills": 500,
    "multi_audio": 875,
    "multi_turn": 875,
    "safety": 875,
    "multilingual": 875,
    "text": 1125,
    "cot": 2400,
}
HELDOUT = 80  # records of an axis that every stage is asked
# More of them where a stage is rewarded: what reinforcement does is measured on all.
PROMPTS = {"safety": 320, "cot": 320, "talkers": 160, "skills": 160, "multi_audio": 160, "multi_turn": 160}
ENCODER_STEPS, TEXT_STEPS = 1400, 3500
AUDIO = [axis for axis in TRAIN if axis not in ("text", "safety", "cot")]
WRITTEN = ("music", "talkers", "skills", "multi_audio", "multi_turn", "multilingual", "text")
REWARDED = read_curriculum("tiny")["post"].blend  # what the post stage is rewarded on
REINFORCED = tuple(stage.name for stage in read_curriculum("tiny").stages if stage.method == "grpo")


def world(out: Path, seed: int, scale: float) -> Path:
    """The corpora, written once."""
    folder = out / "world"
    if not (folder / "done").exists():
        train_sizes = {axis: max(8, round(scale * count)) for axis, count in TRAIN.items()}
        heldout = {axis: max(1, round(PROMPTS.get(axis, HELDOUT) * min(1, 4 * scale))) for axis in TRAIN}
        with tqdm(total=1, desc="Recording a world") as bar:

            def on_step(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            write_world(folder, train=train_sizes, heldout=heldout, seed=seed, processes=2, on_step=on_step)
        (folder / "done").touch()
    return folder


def base(out: Path, folder: Path, seed: int, scale: float) -> Path:
    """The model that the first stage starts from."""
    home = out / "base"
    if (home / "config.json").exists():
        return home
    words = texts()
    random.Random(seed).shuffle(words)
    words = [*words, *[SYSTEM, "system", "user", "assistant"] * 8]
    model, processor = untrained(seed, words, 1024, layers=4, heads=4, kv_heads=2)
    trainee = Trainee(model, (len(LABELS), len(DETAILS)))
    corpora = [folder / "train" / f"{axis}.jsonl" for axis in WRITTEN]
    parts = (
        (Part("encoder", ("model.encoder", "labels"), 3e-3, steps=max(2, scale * ENCODER_STEPS)), "medley"),
        (
            Part("language model", ("model.language_model", "model.lm_head"), 2e-3, steps=max(2, scale * TEXT_STEPS)),
            "written",
        ),
    )
    for part, kind in parts:
        lessons = Lessons(kind, processor, seed, corpora).batches()
        with tqdm(total=100, bar_format="{desc:<28}{percentage:3.0f}%|{bar}| {elapsed} < {remaining} left") as bar:

            def on_step(progress: float, loss: float, bar: tqdm = bar, name: str = part.name) -> None:
                bar.set_description_str(f"{name} {loss:.2f}", refresh=False)
                bar.update(100 * progress - bar.n)

            fit(trainee, part, lessons, on_step)
    model.save_pretrained(home)
    processor.save_pretrained(home)
    return home


def read(folder: Path, axes: Sequence[str], most: int | None = None) -> list[dict]:
    """The first records of each axis; all of them where no number is given."""
    lines = [line for axis in axes for line in (folder / f"{axis}.jsonl").read_text("utf-8").splitlines()[:most]]
    return [json.loads(line) for line in lines]


def evaluate(model_folder: Path, heldout: Path) -> dict:
    """Held-out scores of a model by axis, its rewards, and how it does on questions of when."""
    model, processor = AFNext.from_pretrained(model_folder), AFNextProcessor.from_pretrained(model_folder)
    records = read(heldout, list(TRAIN), HELDOUT)
    answers = answer(model, processor, records, heldout)
    scores = by_axis(records, answers)
    shares = rewarded(records, answers, REWARDED)
    reasoned = [(record, said) for record, said in zip(records, answers, strict=True) if record["axis"] == "cot"]
    twins = [direct(record) for record, _ in reasoned]
    plain = answer(model, processor, twins, heldout)
    times = [timestamps(record, said) for record, said in reasoned]
    each = listed((record["axis"], score(record, said)) for record, said in zip(records, answers, strict=True))
    each["temporal_direct"] = [score(record, said) for record, said in zip(twins, plain, strict=True)]
    each["timestamps_within_1_s"] = times
    return {
        "axes": {axis: round(row["score"], 4) for axis, row in scores.items()},
        "n": {axis: row["n"] for axis, row in scores.items()},
        "reward": weighed(shares, REWARDED),
        "temporal_with_reasoning": round(scores["cot"]["score"], 4),
        "temporal_direct": round(by_axis(twins, plain)["long"]["score"], 4),
        "timestamps_within_1_s": round(sum(times) / len(times), 4),
        "answers_with_most_timestamps_right": round(sum(t > 0.5 for t in times) / len(times), 4),
        # Of every record in the corpora's order: two models are compared record by record.
        "records": {name: compact(values) for name, values in each.items()},
        "rewards": {axis: compact(values) for axis, values in shares.items()},
        "examples": [
            {
                "id": record["id"],
                "question": record["messages"][-2]["content"],
                "answer": said,
                "truth": record["truth"]["answer"],
            }
            for record, said in list(zip(records, answers, strict=True))[:: max(1, len(records) // 30)]
        ],
    }


def listed(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def compact(values: Iterable[float]) -> str:
    """Numbers as one line of text: "1 0 0.667"."""
    return " ".join(f"{value:.3g}" for value in values)


def rewarded(records: Sequence[dict], answers: Sequence[str], axes: Collection[str]) -> dict[str, list[float]]:
    """Rewards of the answers to records of some axes, by axis."""
    pairs = [pair for pair in zip(records, answers, strict=True) if pair[0]["axis"] in axes]
    return listed(
        (record["axis"], rewards.total(rewards.reward(said, record["rewards"]), record["rewards"]))
        for record, said in pairs
    )


def weighed(shares: Mapping[str, Sequence[float]], blend: Mapping[str, float]) -> float:
    """Mean reward, axes weighed as a stage blends them."""
    total = sum(blend[axis] * sum(some) / len(some) for axis, some in shares.items())
    return round(total / sum(blend[axis] for axis in shares), 4)


def reinforcement(out: Path, curriculum: Curriculum, name: str, seeds: Sequence[int], heldout: Path) -> dict:
    """What a stage of GRPO does to the rewards of greedy answers to all held-out prompts, with several seeds.

    The seeds are of data and sampling: all start from the same model.
    """
    stage = curriculum[name]
    records, start = read(heldout, list(stage.blend)), stage.start.stage

    def rewards_of(folder: Path) -> dict[str, str]:
        model, processor = AFNext.from_pretrained(folder / MODEL), AFNextProcessor.from_pretrained(folder / MODEL)
        found = rewarded(records, answer(model, processor, records, heldout), stage.blend)
        return {axis: compact(values) for axis, values in found.items()}

    after = {str(curriculum.seed): rewards_of(out / name)}
    for seed in seeds:
        run = out / f"{name}-seed-{seed}"
        if not (run / start).exists():
            run.mkdir(exist_ok=True)
            (run / start).symlink_to((out / start).absolute())
        options = Options(show=False, tensorboard=False)
        train(replace(curriculum, seed=seed), out / "base", run, layout=read_layout("cpu"), only=name, options=options)
        after[str(seed)] = rewards_of(run / name)
    return {"start": start, "blend": stage.blend, "before": rewards_of(out / start), "after": after}


def scaled(curriculum: Curriculum, scale: float, seed: int) -> Curriculum:
    stages = tuple(replace(stage, steps=max(2, round(scale * stage.steps))) for stage in curriculum.stages)
    return replace(curriculum, stages=stages, seed=seed)


def run(out: Path, seed: int = 0, scale: float = 1.0, show: bool = True, until: str | None = None) -> dict:
    """Everything, or every stage up to one, from where it stands; returns what ``results.json`` in the folder holds."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    results = {"seed": seed, "scale": scale, "starts": 0, "stages": {}, "seconds": {}}
    if file.exists():
        results = json.loads(file.read_text())
    # A run that was stopped, rather than one that ended after a stage, does not know all of its time.
    ended = results.pop("ended", False)
    results["starts"] += "cot-rl" not in results["stages"] and not ended
    write_json(file, results)
    tick = time.perf_counter()

    def clock(name: str) -> None:
        nonlocal tick
        tick, spent = time.perf_counter(), time.perf_counter() - tick
        results["seconds"][name] = round(spent, 1)
        results["total_seconds"] = round(sum(results["seconds"].values()), 1)
        write_json(file, results)

    def note(name: str, becomes: str, folder: Path) -> None:
        if name not in results["stages"]:
            results["stages"][name] = {"becomes": becomes} | evaluate(folder, data / "heldout")
            results["machine"] = machine()
            clock(name)
            if show:
                shown = {k: v for k, v in results["stages"][name].items() if k not in ("examples", "n")}
                print(name, json.dumps(shown))

    data = world(out, seed, scale)
    home = base(out, data, seed, scale)
    note("base", "", home)

    def on_stage(stage: Stage, folder: Path) -> None:
        note(stage.name, stage.release_name, folder)

    curriculum = scaled(read_curriculum("tiny", data / "train"), scale, seed)
    if until is not None:
        names = [stage.name for stage in curriculum.stages]
        curriculum = replace(curriculum, stages=curriculum.stages[: names.index(until) + 1])
    train(
        curriculum,
        home,
        out,
        layout=read_layout("cpu"),
        options=Options(show=show, tensorboard=False),
        on_stage=on_stage,
    )
    if until is not None:
        results["ended"] = True
        write_json(file, results)
        return results
    for name in REINFORCED:
        found = results.setdefault("reinforcement", {})
        if name not in found:
            found[name] = reinforcement(out, curriculum, name, (seed + 1, seed + 2), data / "heldout")
            clock(f"{name}_seeds")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of corpora and steps")
    stages = [stage.name for stage in read_curriculum("tiny").stages]
    parser.add_argument("--until", choices=stages, metavar="STAGE", help="the last stage of this run")
    args = parser.parse_args()
    run(args.out, args.seed, args.scale, until=args.until)


if __name__ == "__main__":
    main()
