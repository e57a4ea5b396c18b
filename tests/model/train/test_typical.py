"""The micro-batches that a plan takes: full, as long as the stage allows, and as long as the data's."""

import numpy as np
import pytest

from afn_model.train.curriculum import Stage
from afn_model.train.rates import ASSUMED
from afn_model.train.typical import longest, mix, typical


def stage(**more) -> Stage:
    return Stage("some", ("all",), {"x": 1.0}, **{"context": 8192, "batch_tokens": 8192, "max_audio": 60.0, **more})


def test_the_longest_recordings_fill_the_context():
    found = longest(stage())
    assert found.tokens == 8192
    assert found.lengths[:5] == (1564,) * 5
    assert found.frames[:2] == (1500, 1500)
    assert sum(found.frames) == 2 * (8192 - 64 * len(found.lengths))
    assert found.supervised == 32 * len(found.lengths)
    assert found.texts == (64,) * len(found.lengths)


def test_a_prompt_has_its_answers_and_others_fill_the_pass():
    grpo = stage(method="grpo", batch_prompts=8, batch_tokens=0, grpo={"group": 3, "max_new_tokens": 100})
    found = longest(grpo)
    assert found.lengths == (1564, 99, 99, 99, 8192 - 1564 - 297)
    assert (found.supervised, found.answers, sum(found.frames)) == (300, 3, 3000)
    tight = stage(method="grpo", batch_prompts=8, batch_tokens=0, grpo={"group": 3, "max_new_tokens": 4096})
    assert longest(tight).lengths == (1564, 4095, 4095, 4095), "a larger one is alone"
    few = typical(grpo, ASSUMED)
    assert few.lengths[1:] == (49, 49, 49)
    assert longest(stage(method="dpo", batch_prompts=8, batch_tokens=0)).answers == 2


@pytest.mark.parametrize("mean", [0, 300, 3000])
def test_a_typical_sequence_is_full_and_has_the_datas_mean(mean):
    found = typical(stage(max_audio=1800.0), ASSUMED, mean)
    assert 0.9 * 8192 < found.tokens <= 8192
    assert max(found.lengths) <= 8192
    if mean == 300:
        assert 150 < np.mean(found.lengths) < 600
    assert 2 * (sum(found.lengths) - sum(found.texts)) == sum(found.frames)
    assert max(typical(stage(), ASSUMED, mean, words=50).texts) == 50 < max(typical(stage(), ASSUMED, mean).texts)
    assert len(typical(stage(max_audio=10.0), ASSUMED).lengths) > len(typical(stage(), ASSUMED).lengths)


def test_clips_fit():
    audio, text = mix(1000, 2000, seed=3)
    assert len(audio) == 1000
    assert (audio + text).max() <= 2000
