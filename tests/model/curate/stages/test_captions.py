"""Captions of segments: what each of them is asked about, what is lost and counted, and what waits for another run."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from afn_model.curate.annotators import annotator_of
from afn_model.curate.executors import here
from afn_model.curate.plan import read_plan
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.run import run
from afn_model.curate.stage import Context, Failed, Kept, NotReady, Source
from afn_model.curate.stages.captions import SegmentCaptions
from afn_model.curate.stand_ins.server import RuleServer, answers_from, by_hash
from tests.model.curate.stages.heard import context, row


@dataclass(frozen=True)
class NamedSegments(Source):
    name: ClassVar[str] = "named-segments"
    writes: ClassVar[tuple[str, ...]] = ("url", "file", "segments")

    def find(self, context):
        return [
            {name: one[name] for name in self.writes} for one in json.loads((context.out / "rows.json").read_text())
        ]


def test_a_budget_stops_a_run_which_goes_on(tmp_path):
    rows = [{**row(tmp_path, name=name), "url": name} for name in "xy"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    answer = answers_from(str(tmp_path / "truth.jsonl"), tmp_path / "recordings")
    with RuleServer(answer, faults=by_hash(2, ("429", "garbage", "half"))) as server:
        told = f"annotators: {{captioner: {{url: {server.url}, model: rules, max_in_flight: 2}}}}\nshards: 2\n"
        told += f"stages:\n- {__name__}:NamedSegments\n- caption\nbudgets:\n  caption: {{calls: 3}}\n"
        (tmp_path / "plan.yaml").write_text(told)
        before = 0
        for most in (3, 3, 100):
            (tmp_path / "plan.yaml").write_text(told.replace("calls: 3", f"calls: {most}"))
            done = run(read_plan(tmp_path / "plan.yaml"), tmp_path, here)[-1]
            assert server.answered - before <= most
            before = server.answered
            if not done.stopped:
                break
            assert done.stopped.startswith("calls")
        assert (done.kept, done.stopped) == (2, "")
        run(read_plan(tmp_path / "plan.yaml"), tmp_path, here)
        assert server.answered == before  # there is nothing left to ask


def test_each_segment_has_its_own(tmp_path):
    one = row(tmp_path)
    (kept,) = SegmentCaptions().run([one], context(tmp_path))
    assert isinstance(kept, Kept)
    assert kept.tally == {"captions": 3}
    assert [entry["segment"] for entry in kept.fields["captions"]] == [part["id"] for part in one["segments"]]
    assert [entry["text"] for entry in kept.fields["captions"]] == [
        "A man speaks, then a bell is heard.",
        "A woman speaks, then a man speaks.",
        "A siren is heard.",
    ]
    assert set(kept.fields["captions"][0]) == {"segment", "text", "model", "prompt", "annotation"}


def test_a_server_that_fails_by_plan_gives_the_same(tmp_path):
    rows = [row(tmp_path, name=name) for name in "xy"]
    want = SegmentCaptions().run(rows, context(tmp_path))
    answer = answers_from(str(tmp_path / "truth.jsonl"), tmp_path / "recordings")
    faults = by_hash(1, ("429", "500", "drop", "page", "garbage", "half", "empty", "language", "loop"))
    with RuleServer(answer, faults=faults) as server:
        ask = annotator_of("captioner", {"url": server.url, "model": "rules"}, tmp_path / "b", "0")
        ask.backend.out, ask.waits = tmp_path, (0.001,)
        found = SegmentCaptions().run(rows, Context(tmp_path, "0", {"captioner": ask}))
        assert sum(server.calls.values()) == 12  # each failed once
    told = [[(entry["segment"], entry["text"]) for entry in one.fields["captions"]] for one in found]
    assert told == [[(entry["segment"], entry["text"]) for entry in one.fields["captions"]] for one in want]


def replies(requests):
    said = {0.0: "A bell rings.", 10.0: "I'm sorry, but I can't listen to this.", 20.0: OSError("busy")}
    return [said[one.messages[0]["content"][0]["audio"]["start"]] for one in requests]


def refuses(requests):
    return ["I cannot help with that."] * len(requests)


def test_what_is_lost_is_counted_and_what_may_come_is_waited_for(tmp_path):
    waiting, short = row(tmp_path), row(tmp_path, seconds=20.0, name="y")
    asked = context(tmp_path, ("captioner",), call=f"{__name__}:replies")
    asked.annotators["captioner"].waits = ()
    failed, kept = SegmentCaptions().run([waiting, short], asked)
    assert failed == Failed("1 of 3 replies are missing: OSError: busy", retryable=True)
    assert [entry["text"] for entry in kept.fields["captions"]] == ["A bell rings."]
    assert kept.tally == {"captions": 1, "captions lost: refused": 1}
    (none,) = SegmentCaptions().run([short], context(tmp_path / "b", ("captioner",), call=f"{__name__}:refuses"))
    assert none == Failed(f"no captions of {short['id']}: 2 captions lost: refused")


def test_a_plan_without_the_annotator(tmp_path):
    with pytest.raises(NotReady, match="stage caption asks 'captioner', which the plan's annotators lack"):
        SegmentCaptions().run([row(tmp_path)], context(tmp_path, ("writer",)))


def test_another_prompt_is_another_stage(tmp_path):
    (tmp_path / "p.txt").write_text("What is heard?")
    head = f"stages:\n- {__name__}:NamedSegments\n- caption"
    for name, text in (("a", head), ("b", f"{head}:\n    prompt: {tmp_path}/p.txt")):
        (tmp_path / f"{name}.yaml").write_text(text)
    one, other = (read_plan(tmp_path / f"{name}.yaml").keys["caption"] for name in "ab")
    (tmp_path / "p.txt").write_text("What is heard here?")
    prompt_file.cache_clear()
    assert len({one, other, read_plan(tmp_path / "b.yaml").keys["caption"]}) == 3
    with pytest.raises(ValueError, match="no prompt 'capton'"):
        SegmentCaptions(prompt="capton")
