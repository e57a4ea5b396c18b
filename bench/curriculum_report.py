"""What a run of the tiny curriculum came to: scores after every stage, claims that hold or do not, and a picture.

    python -m bench.curriculum_report RUN [--out RUN/report]

Writes OUT.md and OUT.png. Of a run that has not ended yet it reports the stages that are there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.bootstrap.tiny_curriculum import AUDIO, REINFORCED, REWARDED
from afn_model.files import write_text
from afn_model.train.log import read_rows
from bench.curriculum_gains import Gain, gain, mean, over_seeds, scores
from bench.curriculum_picture import draw

STAGES = ("pre-1", "pre-2", "mid-1", "mid-2", "post", "cot-sft", "cot-rl")
# What is reported beside the scores by axis: key, words, and the axes whose records it is measured on, weighed.
MEASURES = {
    "reward": ("reward", REWARDED),
    "temporal_with_reasoning": ("temporal questions, with reasoning", {"cot": 1}),
    "temporal_direct": ("temporal questions, direct", {"cot": 1}),
    "timestamps_within_1_s": ("timestamps within 1 s of the truth", {"cot": 1}),
    "answers_with_most_timestamps_right": ("answers with most timestamps right", {"cot": 1}),
}
LIMIT_S = 3600
ERRORS = """\
± is one standard error over the n held-out records of this one run: binomial, √(p (1 − p) / (n + 2)) with
p = (n · score + 1) / (n + 2), so that scores of 0 and 1 have one too. Where answers earn partial credit it is an upper
bound, as no score from 0 to 1 varies more than a coin of the same mean. The error of a difference is that of the paired
differences d between two models' answers to the same records, √([(Σ d² + 1) / (n + 2) − (Σ d / (n + 2))²] / (n + 2)),
so that equal answers have one too (Agresti and Min, 2005). Neither covers what another seed would have learnt."""


@dataclass(frozen=True)
class Trained:
    """What a stage's folder says: method, steps, seconds of training, and from how far into which stage it began."""

    method: str
    steps: int | None
    seconds: float | None
    start: str
    at: float


@dataclass(frozen=True)
class Claim:
    """``holds`` is None where the run cannot tell."""

    name: str
    holds: bool | None
    text: str

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "DOES NOT HOLD", None: "cannot be told"}[self.holds]


@dataclass(frozen=True)
class CurriculumReport:
    """A run as read: ``results.json``, and of every stage its log and what it did."""

    results: dict[str, Any]
    logs: dict[str, list[dict]]
    trained: dict[str, Trained]

    @property
    def stages(self) -> dict[str, dict]:
        return self.results["stages"]

    def model(self, name: str) -> dict | None:
        """The stage that became Captioner, Instruct or Think, None before it has."""
        return next((stage for stage in self.stages.values() if stage["becomes"] == name), None)

    @property
    def missing(self) -> list[str]:
        return [name for name in ("base", *STAGES) if name not in self.stages]


def read(run: Path) -> CurriculumReport:
    """Reads a run folder.

    Raises:
        ValueError: no results in it, or none that can be read.
    """
    file = run / "results.json"
    if not file.is_file():
        raise ValueError(
            f"{file}: no such file; afn_model.bootstrap.tiny_curriculum --out {run} writes it after its bootstrap"
        )
    try:
        results = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: {error}") from None
    if not results.get("stages"):
        raise ValueError(f"{file}: no stage has been evaluated yet")
    if not all("records" in stage for stage in results["stages"].values()):
        raise ValueError(f"{file}: scores of single records are missing; an older version wrote it: run it again")
    logs = {name: read_rows(run / name / "log.jsonl") for name in STAGES}
    logs = {name: rows for name, rows in logs.items() if rows}
    return CurriculumReport(results, logs, {name: trained(run / name, logs.get(name, [])) for name in STAGES})


def trained(folder: Path, rows: list[dict]) -> Trained:
    """From done.json; of a stage that is not done, from its last row."""
    before = ("base", *STAGES)[STAGES.index(folder.name)]
    method = "grpo" if any(row.get("reward") is not None for row in rows) else "sft"
    if (folder / "done.json").is_file():
        done = json.loads((folder / "done.json").read_text("utf-8"))
        start = done["stage"]["start"]
        return Trained(done["stage"]["method"], done["step"], done["seconds"], start["stage"], start["at"])
    last = rows[-1] if rows else {}
    return Trained(method, last["step"] + 1 if last else None, last.get("seconds", 0.0), before, 1.0)


def error(score: float, n: int) -> float:
    """Standard error of a mean of n scores from 0 to 1: √(p (1 − p) / (n + 2)), p = (n · score + 1) / (n + 2).

    Args:
        score: the mean.
        n: records.
    """
    p = (n * score + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / (n + 2))


def apart(before: dict, after: dict, key: str, other: str | None = None) -> Gain:
    """How much higher a stage's measure is than the same one of an earlier stage, or another one of its records."""
    blend = MEASURES[key][1] if key in MEASURES else {key: 1}
    return gain(each(before, other or key), each(after, key), blend)


def each(stage: dict, key: str) -> dict[str, list[float]]:
    """Scores of the records that a measure of a stage is a mean of, by axis."""
    if key == "reward":
        return scores(stage["rewards"])
    same = {"temporal_with_reasoning": "cot", "answers_with_most_timestamps_right": "timestamps_within_1_s"}
    name = same.get(key, key)
    found = scores({name: stage["records"][name]})[name]
    if key == "answers_with_most_timestamps_right":
        found = [float(share > 0.5) for share in found]
    return {"cot" if key in MEASURES else key: found}


def measured(stage: dict) -> dict[str, tuple[float, int]]:
    """Every score of a stage with its n."""
    found = {axis: (score, stage["n"][axis]) for axis, score in stage["axes"].items()}
    extra = {key: (stage[key], worth(stage, axes)) for key, (_, axes) in MEASURES.items()}
    return found | {key: value for key, value in extra.items() if value[1]}


def worth(stage: dict, axes: Mapping[str, float]) -> int:
    """Records that a mean over weighed axes is worth: (Σ w)² / Σ (w² / n)."""
    parts = [(weight, stage["n"].get(axis, 0)) for axis, weight in axes.items()]
    if not all(n for _, n in parts):
        return 0
    return round(sum(w for w, _ in parts) ** 2 / sum(w * w / n for w, n in parts))


def show(value: tuple[float, int]) -> str:
    return f"{value[0]:.2f} ± {error(*value):.2f}"


def claims(report: CurriculumReport) -> list[Claim]:
    """Every claim of the curriculum, weighed."""
    return [
        captioner(report),
        instruct(report),
        timestamps(report),
        think(report),
        helping(report),
        in_time(report),
        reinforced(report),
    ]


def captioner(report: CurriculumReport) -> Claim:
    name = f"Captioner beats the bootstrap on every audio axis ({', '.join(AUDIO)})"
    base, model = report.stages.get("base"), report.model("Captioner")
    if base is None or model is None:
        return Claim(name, None, "There is no Captioner yet." if base else "The bootstrap was not evaluated.")
    before, after = measured(base), measured(model)
    absent = [axis for axis in AUDIO if axis not in before or axis not in after]
    pairs = {axis: (before[axis], after[axis]) for axis in AUDIO if axis not in absent}
    behind = [axis for axis, (a, b) in pairs.items() if b[0] <= a[0]]
    near = [axis for axis in pairs if axis not in behind and apart(base, model, axis).errors < 2]
    text = "; ".join(f"{axis} {show(a)} → {show(b)}" for axis, (a, b) in pairs.items()) + "."
    text += f" Not above the bootstrap: {', '.join(behind)}." if behind else ""
    text += f" Above it by less than two standard errors of the difference: {', '.join(near)}." if near else ""
    text += f" Not measured: {', '.join(absent)}." if absent else ""
    return Claim(name, False if behind else None if absent else True, text)


def instruct(report: CurriculumReport) -> Claim:
    name = "Instruct's reward on held-out prompts exceeds Captioner's by more than the spread of three seeds"
    found = report.results.get("reinforcement", {}).get("post")
    if found is None or len(found["after"]) < 3:
        before, after = report.model("Captioner"), report.model("Instruct")
        if before is None or after is None:
            return Claim(name, None, "There is no Instruct yet.")
        text = " → ".join(show(measured(model)["reward"]) for model in (before, after))
        text = f"one seed only: {text}, a difference of {apart(before, after, 'reward')}"
        return Claim(name, None, f"{text}, but no spread to hold it against.")
    before = mean(scores(found["before"]), found["blend"])
    rewards = {seed: mean(scores(after), found["blend"]) for seed, after in found["after"].items()}
    margin, spread = min(rewards.values()) - before, max(rewards.values()) - min(rewards.values())
    text = "; ".join(f"seed {seed}: {before:.3f} → {reward:.3f}" for seed, reward in rewards.items())
    text += f". Smallest margin {margin:+.3f}, spread of Instruct's reward (largest − smallest of {len(rewards)} "
    # What another seed would have made of the stages before is not in a spread around one Captioner.
    text += f"seeds) {spread:.3f}. All start from one Captioner: the seeds differ in post alone."
    return Claim(name, margin > spread, text)


def timestamps(report: CurriculumReport) -> Claim:
    name = "Think's timestamps lie within 1 s of the truth in most answers"
    model = report.model("Think")
    if model is None:
        return Claim(name, None, "There is no Think yet.")
    share = measured(model)["answers_with_most_timestamps_right"]
    text = f"{show(share)} of {share[1]} answers have more than half of their timestamps right (to be above 0.50)"
    text += f"; of all timestamps, averaged over answers, {model['timestamps_within_1_s']:.2f} are."
    return Claim(name, share[0] > 0.5, text + near_tie(abs(share[0] - 0.5) / error(*share)))


def think(report: CurriculumReport) -> Claim:
    name = "Think beats Instruct on the temporal questions"
    model, other = report.model("Think"), report.model("Instruct")
    if model is None or other is None:
        return Claim(name, None, f"There is no {'Instruct' if other is None else 'Think'} yet.")
    n = model["n"]["cot"]
    ways = {"temporal_direct": "directly", "temporal_with_reasoning": "asked to reason"}
    way = max(ways, key=lambda key: other[key])
    ours, theirs = (model["temporal_with_reasoning"], n), (other[way], other["n"]["cot"])
    ahead = apart(other, model, "temporal_with_reasoning", way)
    text = f"Think, reasoning, {show(ours)}; Instruct at its best ({ways[way]}) {show(theirs)}; n = {n}. "
    text += f"Think asked directly, which tells reasoning from more training: {show((model['temporal_direct'], n))}."
    return Claim(name, ours[0] > theirs[0], text + near_tie(abs(ahead.errors)))


def near_tie(errors: float) -> str:
    return "" if errors >= 2 else f" That is {errors:.1f} standard errors away: chance may have decided it."


def changes(report: CurriculumReport) -> dict[str, tuple[list[str], list[str]]]:
    """Of every stage what rose and what fell by more than two standard errors since the stage it started from.

    The reward of a stage of reinforcement is that of its own blend, on all of its held-out prompts.
    """
    found = {}
    for name in [name for name in report.stages if name in STAGES]:
        start = report.stages.get(report.trained[name].start)
        if start is not None:
            before, after = measured(start), measured(report.stages[name])
            # Temporal questions with reasoning are axis cot: they count once.
            keys = [key for key in after if key in before and key != "temporal_with_reasoning"]
            moved = {key: apart(start, report.stages[name], key).errors for key in keys}
            words = {k: f"{MEASURES.get(k, (k,))[0]} {before[k][0]:.2f} → {after[k][0]:.2f}" for k in keys}
            if name in report.results.get("reinforcement", {}):
                moved["reward"], words["reward"] = reward_of(report, name)
            found[name] = tuple([words[key] for key in keys if sign * moved[key] > 2] for sign in (1, -1))
    return found


def reward_of(report: CurriculumReport, name: str) -> tuple[float, str]:
    """How far a stage of reinforcement moved its own reward, in standard errors and in words, with the run's seed."""
    found = report.results["reinforcement"][name]
    pair = scores(found["before"]), scores(found["after"][str(report.results["seed"])])
    count = sum(len(values) for values in pair[0].values())
    values = " → ".join(f"{mean(one, found['blend']):.2f}" for one in pair)
    return gain(*pair, found["blend"]).errors, f"reward on {count} prompts {values}"


def helping(report: CurriculumReport) -> Claim:
    name = "Every stage helps: something rises by more than two standard errors, and nothing falls by as much"
    moved = changes(report)
    idle = [stage for stage, (rose, fell) in moved.items() if not rose and not fell]
    harmful = {stage: fell for stage, (_, fell) in moved.items() if fell}
    text = "".join(f"{stage} lowers {', '.join(fell)}. " for stage, fell in harmful.items())
    text += f"No change beyond two standard errors: {', '.join(idle)}. " if idle else ""
    text += "" if text else "All that were run do so far. " if report.missing else "All do. "
    text += "Every stage is compared on every axis and measure, where chance alone may move up to one in twenty so far."
    return Claim(name, False if idle or harmful else None if report.missing else True, text)


def in_time(report: CurriculumReport) -> Claim:
    name = "The whole takes less than 60 minutes"
    clock = report.results["seconds"]
    seconds, whole = sum(clock.get(part, 0.0) for part in ("base", *STAGES)), report.results["starts"] == 1
    text = f"{'' if whole else 'At least '}{seconds / 60:.1f} minutes with recording, bootstrap and evaluations"
    more = sum(took for part, took in clock.items() if part.endswith("_seeds"))
    text += f"; other seeds of the stages of reinforcement, and more prompts, took {more / 60:.1f} more" if more else ""
    text += "."
    text += "" if whole else " The run was stopped and went on: some time before that was not counted."
    host = report.results.get("machine")
    if host and host["load"] > 2 * host["cores"]:
        text += f" Other work ran beside it: a load of {host['load']} on {host['cores']} cores."
    text += f" Not there yet: {', '.join(report.missing)}." if report.missing else ""
    small = report.results["scale"] < 1
    text += f" This run is only {report.results['scale']:g} of the curriculum." if small else ""
    return Claim(
        name, False if seconds >= LIMIT_S else True if whole and not report.missing and not small else None, text
    )


def reinforced(report: CurriculumReport) -> Claim:
    name = "Reinforcement raises the reward on held-out prompts by more than two standard errors, with every seed"
    lines, holds = [], []
    for stage, found in report.results.get("reinforcement", {}).items():
        before, blend = scores(found["before"]), found["blend"]
        afters = {seed: scores(after) for seed, after in found["after"].items()}
        gains = {seed: gain(before, after, blend) for seed, after in afters.items()}
        counts = ", ".join(f"{len(values)} {axis}" for axis, values in before.items())
        text = f"{stage} ({counts}), from {mean(before, blend):.3f}: "
        text += "; ".join(f"seed {seed} {one} ({one.errors:.1f} errors)" for seed, one in gains.items())
        if len(afters) > 1:
            several = list(afters.values())
            text += f"; their mean {over_seeds(before, several, blend)}, with the spread of seeds in it, and by axis "
            text += ", ".join(f"{axis} {over_seeds(before, several, {axis: 1})}" for axis in before)
        lines.append(f"{text}.")
        holds.append(all(one.errors > 2 for one in gains.values()))
    if not all(holds):
        return Claim(name, False, " ".join(lines))
    stages = [stage for stage in REINFORCED if stage not in report.results.get("reinforcement", {})]
    lines += [f"Not there yet: {', '.join(stages)}."] if stages else []
    return Claim(name, None if stages else True, " ".join(lines))


def markdown(report: CurriculumReport, picture: str) -> str:
    """The report as text, with the picture in it."""
    out = ["# The curriculum at tiny scale", "", paragraph(report), ""]
    out += [f"![held-out scores, losses and rewards over the stages]({picture})", ""]
    stages = report.stages
    heads = [name + (f" ({stage['becomes']})" if stage["becomes"] else "") for name, stage in stages.items()]
    axes = sorted({axis for stage in stages.values() for axis in stage["axes"]})
    out += ["## Held-out score by data axis after every stage", ""]
    out += table(
        ["axis", *heads, "n"],
        [[axis, *(number(s["axes"].get(axis)) for s in stages.values()), count(stages, [axis])] for axis in axes],
    )
    out += ["## Rewards, temporal questions and timestamps", ""]
    out += table(
        ["on held-out records", *heads, "n"],
        [
            [text, *(number(s.get(key)) for s in stages.values()), count(stages, where)]
            for key, (text, where) in MEASURES.items()
        ],
    )
    out += ["## Claims", "", ERRORS, ""]
    for letter, claim in zip("abcdefg", claims(report), strict=True):
        out += [f"- **({letter}) {claim.name}: {claim.verdict}.** {claim.text}"]
    out += ["", "What moved by more than two standard errors of the difference, stage by stage:", ""]
    rows = []
    for name, (rose, fell) in changes(report).items():
        did = report.trained[name]
        start = did.start if did.at == 1 else f"{did.start} at {did.at:g} of its way (compared with its end)"
        rows.append([name, start, ", ".join(rose) or "nothing", ", ".join(fell) or "nothing"])
    out += table(["stage", "started from", "rose", "fell"], rows)
    return "\n".join(out + examples(report)).rstrip() + "\n"


def paragraph(report: CurriculumReport) -> str:
    """What was run, where, and how long."""
    results, machine = report.results, report.results.get("machine")
    where = "a machine that is noted when the run ends"
    if machine:
        device = machine.get("gpu") or f"{machine['cores']} CPU cores"
        where = f"{device} ({machine['machine']}, {machine['threads']} threads, load {machine['load']} at the end), "
        where += f"PyTorch {machine['torch']}, Python {machine['python']}, {machine['date'][:10]}"
    did = [(name, report.trained[name]) for name in STAGES if report.trained[name].steps is not None]
    steps = [f"{name} {t.steps} steps ({t.method.upper()}) in {t.seconds:,.0f} s" for name, t in did]
    text = f"Seed {results['seed']}, corpora and steps at {results['scale']:g} of their size, on {where}. "
    text += f"Recording the world and the bootstrap took {results['seconds']['base']:,.0f} s. "
    text += f"Training: {', '.join(steps)}. " if steps else "No stage has been trained yet. "
    text += f"With all evaluations, {results['total_seconds']:,.0f} s."
    text += f" The run is unfinished: {', '.join(report.missing)} not evaluated yet." if report.missing else ""
    return text


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def count(stages: dict[str, dict], axes: Sequence[str]) -> str:
    """How many records were asked, "5–60" where not all stages were asked as many."""
    found = sorted({sum(stage["n"].get(axis, 0) for axis in axes) for stage in stages.values()})
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def examples(report: CurriculumReport) -> list[str]:
    """The first kept example of every axis, as the three models answer it: not chosen by how well it went."""
    models = {name: report.model(name) for name in ("Captioner", "Instruct", "Think")}
    found = {n: {e["id"]: e for e in model.get("examples", [])} for n, model in models.items() if model is not None}
    if not any(found.values()):
        return []
    first: dict[str, dict] = {}
    for example in next(filter(None, found.values())).values():
        first.setdefault(example["id"].partition("-heldout")[0], example)
    rows = []
    for axis, e in first.items():
        answers = [said[e["id"]]["answer"] if e["id"] in said else "" for said in found.values()]
        rows.append([axis, *map(plain, [e["question"], e["truth"], *answers])])
    head = "## Answers to held-out records, the first one kept of every axis"
    return [head, "", *table(["axis", "question", "truth", *found], rows)]


def plain(text: str, longest: int = 240) -> str:
    """Text that a Markdown cell shows as it is."""
    text = " ".join(str(text).split())
    text = text if len(text) <= longest else f"{text[:longest]} …"
    safe = {sign: f"&#{ord(sign)};" for sign in "&<>"} | {sign: f"\\{sign}" for sign in "|*_`"}
    return text.translate(str.maketrans(safe))


def write(run: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Reports on a run.

    Args:
        run: its folder.
        out: the files without .md and .png; RUN/report if None.

    Returns:
        The Markdown file and the picture.

    Raises:
        ValueError: no results in the run folder.
    """
    report = read(run)
    out = run / "report" if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    text, picture = Path(f"{out}.md"), Path(f"{out}.png")
    steps = {name: did.steps for name, did in report.trained.items()}
    draw(report.stages, report.logs, steps, picture)
    write_text(text, markdown(report, picture.name))
    return text, picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of afn_model.bootstrap.tiny_curriculum")
    parser.add_argument("--out", type=Path, help="the report without .md and .png (RUN/report)")
    args = parser.parse_args()
    try:
        print(*write(args.run, args.out), sep="\n")
    except ValueError as problem:
        raise SystemExit(str(problem)) from None


if __name__ == "__main__":
    main()
