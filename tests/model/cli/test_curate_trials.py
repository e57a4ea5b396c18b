"""A whole run of curation on a few recordings with all that is to be found in them: stopped, killed, changed."""

from collections import Counter

from afn_model.cli.curate_demo import EVERY, make_world, write_plan
from afn_model.cli.curate_trials import RunTrials, changed, forgotten, killed, stopped
from afn_model.curate.stand_ins.guarantees import CHECKS, FinishedRun
from afn_model.curate.stand_ins.server import RuleServer, answers_from, by_hash

PLANTED = {"mp3": 1, "bytes": 1, "benchmark": 1, "broken": 1, "silent": 1, "denied": 1, "private": 1}


def test_what_is_promised(tmp_path):
    world, runs = tmp_path / "world", tmp_path / "runs"
    make_world(world, plain=6, planted=PLANTED, long=0)
    answer = answers_from(str(world / "truth.jsonl"), runs / "whole" / "recordings")
    with RuleServer(answer, faults=by_hash(EVERY)) as server:
        trials = RunTrials(write_plan(world, server.url), runs, 13, server, workers=1)
        trials.whole()
        run = FinishedRun(runs / "whole", world, Counter(server.paid), Counter(server.faulted))
        found = [check(run) for check in CHECKS] + [stopped(trials), killed(trials, 2, 2.0, lambda text: None)]
        found += [changed(trials), forgotten(trials)]
    assert [one for one in found if not one.holds] == []
    assert len(found) == 15
