"""What ``afn bench run`` saves: 100 short questions as one run, as 100 commands, and as a loop in one process.

    AFN_MODEL=runs/demo python -m bench.evaluation --out bench/results/cpu/evaluation.jsonl [--rounds 3]

The model is that of ``make demo``, the questions are about sounds of its world, in the files of a benchmark; all three
ways ask the same texts and must get the same answers. Every time is that of whole processes, from their start to their
end: those of the run end with a report and its picture. The last row is without these, and without the imports of
Python: from where the model is loaded to the last answer. A command takes as long for each question, so that a round
has but eight of them, and 100 questions are 100 times their median.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from afn_model.eval.copies.sounds import NAMES, Sounds, save
from afn_model.eval.running.answers import read_answers
from afn_model.eval.running.run import SPENT
from bench.engine import row
from bench.measure import main

QUESTIONS, COMMANDS = 100, 8
QUESTION = "Which sound do you hear?"
BENCHMARK = "mmau-mini"  # whose files they are in
LOOP = """
import json, sys, time
from afn_model.infer.sampling_params import SamplingParams
from afn_model.session import Session
began = time.perf_counter()
session, answers = Session(sys.argv[1]), []
for path in sys.argv[3:]:
    said = [{"role": "user", "content": [{"type": "audio", "path": path}, {"type": "text", "text": sys.argv[2]}]}]
    answers += [answer.text for answer in session.answer([said], SamplingParams(max_new_tokens=1024))]
print(json.dumps([answers, time.perf_counter() - began]))
"""


def write_questions(data: Path, count: int) -> list[str]:
    """The files of a benchmark with so many questions; the paths of their recordings."""
    sounds, folder, rows = Sounds(), data / BENCHMARK, []
    for number in range(count):
        name = sounds.pick(NAMES)
        choices = sorted([name, *sounds.others(NAMES, name, 3)])
        save(folder / "test-mini-audios" / f"{number}.wav", sounds.sound(name))
        about = {"id": f"{number}", "audio_id": f"./test-mini-audios/{number}.wav", "task": "sound"}
        rows.append(about | {"question": QUESTION, "choices": choices, "answer": name})
    (folder / "mmau-test-mini.json").write_text(json.dumps(rows), "utf-8")
    return [str(folder / one["audio_id"]) for one in rows]


def process(*words: str) -> tuple[str, float, float]:
    """(standard output, seconds, CPU seconds) of a process of Python.

    Raises:
        ValueError: it has failed.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise ValueError(f"{' '.join(words)[:200]}: exit code {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_all(model: str, data: Path, out: Path) -> tuple[list[str], float, float, float]:
    """(answers, seconds, CPU seconds, seconds of answering alone) of one run."""
    words = ["-m", "afn_model.cli", "bench", "run", "--suite", BENCHMARK, "--data", str(data), "--out", str(out)]
    _, seconds, cpu = process(*words, "--model", model, "--prompt", "question", "--quiet")
    found = {key.split("/")[1]: one["answer"] for key, one in read_answers(out).items()}
    answering = json.loads((out / SPENT).read_text("utf-8"))["seconds"]
    return [found[str(number)] for number in range(len(found))], seconds, cpu, answering


def loop(model: str, paths: list[str]) -> tuple[list[str], float, float, float]:
    """The same of ``Session.answer``, one question after another in one process."""
    said, seconds, cpu = process("-c", LOOP, model, QUESTION, *paths)
    answers, answering = json.loads(said)
    return answers, seconds, cpu, answering


def ask(model: str, path: str) -> tuple[str, float, float]:
    """(answer, seconds, CPU seconds) of one command."""
    words = ["-m", "afn_model.cli", "ask", path, QUESTION, "--model", model, "--json", "--quiet"]
    said, seconds, cpu = process(*words)
    return json.loads(said)["answer"], seconds, cpu


def measure_in(folder: Path, model: str, rounds: int, questions: int = QUESTIONS, commands: int = COMMANDS) -> dict:
    paths = write_questions(folder / "data", questions)
    spent: dict[str, list[tuple[float, ...]]] = {"run": [], "loop": [], "ask": []}
    different, asked = 0, 0
    for turn in range(rounds):
        answers, *run = run_all(model, folder / "data", folder / f"out-{turn}")
        own, *looped = loop(model, paths)
        picked = [(turn * commands + number) % questions for number in range(commands)]
        single = [ask(model, paths[number]) for number in picked]
        each = [questions * statistics.median(one[at] for one in single) for at in (1, 2)]
        for name, found in (("run", run), ("loop", looped), ("ask", each)):
            spent[name].append(tuple(found))
        different += sum(one != other for one, other in zip(answers, own, strict=True))
        different += sum(one[0] != answers[number] for one, number in zip(single, picked, strict=True))
        asked += questions + commands
    return {"benchmark": "evaluation", "rows": rows_of(spent, questions, different, asked)}


def rows_of(spent: dict[str, list[tuple[float, ...]]], questions: int, different: int, asked: int) -> list[dict]:
    """Claims from (seconds, CPU seconds, seconds of answering) of each way in each round."""

    def faster(name: str, what: str, at: int, bar: float | None) -> dict:
        pairs = list(zip(spent[name], spent["run"], strict=True))
        ratios, cpu = ([other[n] / run[n] for other, run in pairs] for n in (at, 1))
        rates = {
            f"{one}_per_second": round(questions / statistics.median(times[at] for times in spent[one]), 3)
            for one in ("run", name)
        }
        return row(
            f"{questions} short questions as one run, times as many per second as {what}",
            "measured" if bar is None else f">= {bar:g} in each round",
            round(statistics.median(ratios), 2),
            bar is None or min(ratios) >= bar,
            lowest=round(min(ratios), 2),
            **({} if at else {"of_cpu_seconds": round(statistics.median(cpu), 2)}),
            **rates,
        )

    said = "answers of the run that a command or the loop gives differently"
    return [
        faster("ask", "a command for each", 0, 5.0),
        faster("loop", "a loop of Session.answer", 0, None),
        row(said, "none", different, different == 0, of=asked),
        faster("loop", "a loop of Session.answer, answering alone", 2, None),
    ]


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    model = os.environ.get("AFN_MODEL", "runs/demo")
    with tempfile.TemporaryDirectory() as folder:
        return measure_in(Path(folder), model, rounds)


def table(record: dict) -> str:
    lines = [
        f"A run of questions against asking them one by one, {record['date'][:10]}: `python -m bench.evaluation`.",
        "The demo's model on a CPU; whole processes, from start to end.",
        "",
        "| claim | bar | measured | holds |",
        "|---|---|---|---|",
    ]
    for one in record["rows"]:
        more = {name: value for name, value in one.items() if name not in ("claim", "bar", "value", "holds")}
        beside = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in more.items())
        holds = "yes" if one["holds"] else "**no**"
        lines.append(f"| {one['claim']} | {one['bar']} | {one['value']:,} ({beside}) | {holds} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=3, table=table)
