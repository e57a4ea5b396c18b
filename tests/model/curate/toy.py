"""Stages and plans for tests of the core: a list of words in, a few fields out; every call is counted in a file."""

import json
import os
from dataclasses import dataclass

import yaml

from afn_model.curate.executors import here
from afn_model.curate.plan import read_plan
from afn_model.curate.run import run
from afn_model.curate.stage import Dropped, Failed, Kept, Resources, Source, Stage

MODULE = "tests.model.curate.toy"


def count(context, name, rows):
    with (context.out.parent / "calls.txt").open("a") as file:
        file.write("".join(f"{name} {row['id']}\n" for row in rows))


@dataclass(frozen=True)
class ToyFind(Source):
    path: str = "words.json"

    name = "find"
    writes = ("url", "word", "licence")

    def find(self, context):
        rows = json.loads((context.folder / self.path).read_text())
        return [{"url": url, "word": word, "licence": "cc0"} for url, word in rows.items()]


@dataclass(frozen=True)
class ToyLoad(Stage):
    """Fails for a time where the file "down" is there."""

    name = "load"
    reads, writes = ("url", "word"), ("source_id", "seconds")
    resources = Resources(batch=2, seconds=36.0)

    def run(self, rows, context):
        count(context, self.name, rows)
        down = (context.folder / "down").exists()
        return [
            Failed("503", retryable=True)
            if down and row["word"] == "flaky"
            else Kept({"source_id": row["word"].encode().hex() * 8, "seconds": 10.0 * len(row["word"])})
            for row in rows
        ]


@dataclass(frozen=True)
class ToyGate(Stage):
    least: int = 2

    name = "gate"
    reads, writes, drops = ("word",), (), True

    def run(self, rows, context):
        count(context, self.name, rows)
        found = []
        for row in rows:
            if row["word"] == "broken":
                raise RuntimeError("broken\nword")
            found.append(
                Kept({}, {"letters": len(row["word"])}) if len(row["word"]) >= self.least else Dropped("short")
            )
        return found


@dataclass(frozen=True)
class ToyTwins(Stage):
    """Of rows with the same bytes only the first stays."""

    name = "twins"
    reads, writes, drops, whole = ("source_id",), ("copies",), True, True

    def run(self, rows, context):
        count(context, self.name, rows)
        first, copies = {}, {}
        for row in rows:
            first.setdefault(row["source_id"], row["id"])
            copies[row["source_id"]] = copies.get(row["source_id"], 0) + 1
        return [
            Kept({"copies": copies[row["source_id"]]})
            if first[row["source_id"]] == row["id"]
            else Dropped("copy", f"of {first[row['source_id']]}")
            for row in rows
        ]


@dataclass(frozen=True)
class ToyShout(Stage):
    mark: str = "!"

    name = "shout"
    reads, writes = ("word", "seconds"), ("loud",)
    resources = Resources(calls=360.0, tokens_in=360 * 440.0, tokens_out=360 * 120.0)

    def run(self, rows, context):
        count(context, self.name, rows)
        for _ in rows:
            context.spending.check()
            context.spending.add(calls=1, tokens=10)
        return [
            Kept({"loud": {"text": row["word"].upper() + self.mark, "model": "rule", "prompt": "p1"}}) for row in rows
        ]


@dataclass(frozen=True)
class ToyEnd(Stage):
    name = "end"
    reads, writes = ("loud", "copies"), ("record",)

    def run(self, rows, context):
        count(context, self.name, rows)
        return [Kept({"record": f"{row['loud']['text']} x{row['copies']}"}) for row in rows]


STAGES = ["ToyFind", "ToyLoad", "ToyGate", "ToyTwins", "ToyShout", "ToyEnd"]
WORDS = {
    "u:a": "alpha", "u:b": "b", "u:c": "gamma", "u:d": "alpha", "u:e": "broken", "u:f": "flaky", "u:g": "golf",
    "u:h": "hotel", "u:i": "i",
}  # fmt: skip


class Toy:
    """A folder with words, a plan and a run."""

    def __init__(self, folder, stages=STAGES, words=WORDS, **told):
        self.folder, self.out, self.stages = folder, folder / "out", stages
        folder.mkdir(parents=True, exist_ok=True)
        self.told = {"shards": 2, **told}
        self.say(words)

    def say(self, words):
        (self.folder / "words.json").write_text(json.dumps(words))

    def plan(self, **changes):
        stages = [f"{MODULE}:{one}" if isinstance(one, str) and one.startswith("Toy") else one for one in self.stages]
        path = self.folder / "plan.yaml"
        path.write_text(yaml.safe_dump({"stages": stages, **self.told}))
        return read_plan(path, {name.replace("_", "."): value for name, value in changes.items()})

    def run(self, plan=None, executor=here, **options):
        return {one.stage: one for one in run(plan or self.plan(), self.out, executor, **options)}

    def calls(self):
        """How many rows each stage has run since this was last asked."""
        found, path = {}, self.folder / "calls.txt"
        if path.exists():
            for line in path.read_text().splitlines():
                name = line.split()[0]
                found[name] = found.get(name, 0) + 1
            os.unlink(path)
        return found

    def files(self):
        """Everything below stages/, by name: what must not depend on how a run went."""
        stages = self.out / "stages"
        return {
            str(path.relative_to(stages)): path.read_bytes()
            for path in sorted(stages.rglob("*"))
            if path.is_file() and path.suffix != ".lock"
        }

    def lines(self, stage, plan=None):
        folder = self.out / "stages" / f"{stage}-{(plan or self.plan()).keys[stage]}"
        return {
            line["id"]: line
            for path in folder.glob("*.jsonl")
            for line in map(json.loads, path.read_text().splitlines())
        }
