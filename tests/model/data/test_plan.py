"""Plans: bins that one chunk leaves over are trained on with the next one's; what the loss counts is known before."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from afn_model.data import plan
from afn_model.data.index import build
from afn_model.data.loader import Loader
from afn_model.data.plan import ChunkPlan, DataConfig
from tests import tiny

SAMPLES, BINS = 230, 6


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Texts of many lengths in chunks of 16, 32, 64 and 59 in turn; a chunk has 2.3 to 9 steps."""
    monkeypatch.setattr(plan, "FIRST_CHUNK", 16)
    path = tmp_path / "texts.jsonl"
    asked = [{"role": "user", "content": "What is said?"}]
    lines = []
    for i in range(SAMPLES):
        answer = {"role": "assistant", "content": "A dog barks. " * (1 + 7 * i % 12)}
        lines.append(
            json.dumps({"id": str(i), "messages": [*asked, answer, *([*asked, answer] if i % 3 == 0 else [])]})
        )
    path.write_text("\n".join(lines) + "\n")
    build(path)
    return DataConfig({"t": path}, {"t": 1}, seed=3, context=384, bins=BINS, max_seconds=1.0, chunk=64)


def facts(step):
    micro = [([sample.id for sample in one.samples], one.batch.input_ids.tolist()) for one in step.micro]
    return step.position, step.seen, step.supervised, step.ends_chunk, micro


def test_all_steps_of_an_epoch_are_whole_but_the_last(config, processor):
    steps = list(itertools.takewhile(lambda step: step.seen <= 2 * SAMPLES, filter(facts, Loader(config, processor))))
    filled = [sum(bool(micro.samples) for micro in step.micro) for step in steps]
    ends = [number for number, step in enumerate(steps) if step.seen % SAMPLES == 0]
    assert [steps[number].seen for number in ends] == [SAMPLES, 2 * SAMPLES]
    assert all(count == BINS for number, count in enumerate(filled) if number not in ends)
    seen = Counter(sample.id for step in steps for micro in step.micro for sample in micro.samples)
    assert set(seen.values()) == {2}
    assert len(seen) == SAMPLES
    assert any(step.position.carried for step in steps), "a step had bins of two chunks"
    assert sum(step.ends_chunk for step in steps) >= 6


def test_a_restart_anywhere_goes_on_with_the_same_steps(config, processor):
    whole = [facts(step) for step in itertools.islice(Loader(config, processor), 24)]
    crossed = [number for number, step in enumerate(whole) if step[0].carried]
    for number in {0, 3, *crossed[:6], crossed[-1]} - {23}:
        again = facts(next(iter(Loader(config, processor, position=whole[number][0]))))
        assert again == whole[number + 1], whole[number][0]


def test_the_plan_counts_what_the_loss_counts(config, processor):
    for step in itertools.islice(Loader(config, processor), 5):
        assert step.supervised == sum(micro.batch.supervised for micro in step.micro) > 0


@pytest.mark.parametrize("step", [1, 4, 7])
def test_whole_steps_stay_together_behind_what_was_carried(step):
    for bins, carried in itertools.product((1, 3, 4, 15, 28, 30), range(step)):
        sizes = 1 + np.arange(bins) % 3
        samples = np.repeat(np.arange(bins), sizes)
        fields = dict.fromkeys(("sources", "visits", "tokens", "longest", "supervised"), samples)
        made = ChunkPlan(0, records=samples, cu=np.concatenate(([0], sizes.cumsum())), step=step, bad=[], **fields)
        after = made.after(carried)
        order = [int(after.records[first]) for first in after.cu[:-1]]
        assert sorted(order) == list(range(bins))
        assert np.diff(after.cu).tolist() == sizes[order].tolist()
        whole = [set(range(first, first + step)) for first in range(0, bins - step + 1, step)]
        begin = (step - carried) % step
        kept = [set(order[first : first + step]) for first in range(begin, bins - step + 1, step)]
        assert sum(one in kept for one in whole) >= len(whole) - 1, (bins, carried)
