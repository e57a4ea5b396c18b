"""What 50,000 hours cost: rates that were measured on one core and calls by arithmetic; and from a sample of a run."""

from dataclasses import dataclass

import pytest

from afn_model.curate.cost import estimate, text
from afn_model.curate.plan import Plan
from afn_model.curate.stage import Resources, Stage
from tests.model.curate.toy import Toy, ToyFind

SEGMENTS, VIDEOS = 360, 4  # of an hour of audio: of 10 s, and of 15 min


def stage(label, **needs):
    @dataclass(frozen=True)
    class ToyNeeds(Stage):
        name = label
        resources = Resources(**needs)

    return ToyNeeds()


def llm(label, calls, tokens_in, tokens_out):
    return stage(label, calls=calls, tokens_in=calls * tokens_in, tokens_out=calls * tokens_out)


STAGES = (
    ToyFind(),
    stage("decode", seconds=3600 / 1277),
    stage("speech", seconds=3600 / 450),
    stage("tags", seconds=3600 / 403),
    stage("mos", seconds=3600 / 45),
    stage("asr", seconds=3600 / 300, gpu=1),
    llm("merge", SEGMENTS, 440, 120),
    llm("caption", VIDEOS, 90 * 120, 1500),
    llm("long", 3 * VIDEOS, 11_400, 850),
    llm("informative", SEGMENTS, 250, 20),
)


def test_fifty_thousand_hours():
    found = {one.stage: one for one in estimate(Plan("p", STAGES), 50_000)}
    hours = {name: found[name].core_hours for name in ("decode", "speech", "tags", "mos")}
    assert {name: round(value) for name, value in hours.items()} == {
        "decode": 39,
        "speech": 111,
        "tags": 124,
        "mos": 1111,
    }
    assert (round(found["asr"].gpu_hours), found["merge"].calls, found["caption"].calls) == (167, 18e6, 0.2e6)
    told = {name: (found[name].tokens_in / 1e9, found[name].tokens_out / 1e9) for name in found}
    assert told["merge"] == pytest.approx((7.92, 2.16))
    assert told["caption"] == pytest.approx((2.16, 0.3))
    assert told["long"] == pytest.approx((6.84, 0.51))
    assert told["informative"] == pytest.approx((4.5, 0.36))
    # 35.8 B tokens in and 5.7 B out, of all jobs, are 1,130 GPU-hours.
    everything = estimate(Plan("p", (ToyFind(), llm("all", 1, 35.8e9 / 50_000, 5.7e9 / 50_000))), 50_000)[1]
    assert round(everything.served_hours, -1) == 1130
    said = text(list(found.values()))
    assert "merge 50K 18M 7.92B 2.16B 0 0 350 the stage" in " ".join(said.split())
    assert said.splitlines()[-2].startswith("together ")


def test_a_sample_of_a_run_stands_for_the_whole(tmp_path):
    toy = Toy(tmp_path)
    plan = toy.plan()
    with pytest.raises(ValueError, match="give --hours"):
        estimate(plan, out=toy.out)
    toy.run()
    costs = {one.stage: one for one in estimate(plan, 900.0, toy.out)}
    mean = sum(line["fields"]["seconds"] for line in toy.lines("load").values()) / 9
    assert costs["gate"].hours == 900
    assert costs["twins"].hours == pytest.approx(600)
    assert costs["shout"].hours == pytest.approx(500)
    assert costs["shout"].measured
    assert costs["shout"].calls == pytest.approx(500 * 3600 / mean)
    assert costs["shout"].tokens_in == pytest.approx(10 * costs["shout"].calls)
    assert estimate(plan, out=toy.out)[0].hours == pytest.approx(9 * mean / 3600)
    assert estimate(plan, 900.0)[4].calls == 900 * 360
