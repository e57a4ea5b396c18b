"""What parts of a step are predicted to take."""

import math

import pytest

from afn_model.config import ModelConfig
from afn_model.infer.costs import Costs
from afn_model.train.flops import forward_flops, head, language_model_linear


def test_the_arithmetic_is_that_of_training():
    config = ModelConfig()
    costs = Costs.of(config, matmul=1.0, attention=1.0, memory=1.0, host=1.0, overhead=0.0)
    flops = forward_flops(config, [45_000], 0, [3000] * 60)
    language, encoder = (
        sum(value for name, value in flops.items() if name.startswith(parts))
        for parts in (("linear", "attention"), ("encoder", "adaptor"))
    )
    assert costs.chunk(0, 45_000) == pytest.approx(language, rel=1e-12)
    assert 60 * costs.window == pytest.approx(encoder, rel=1e-12)
    assert costs.row == language_model_linear(config.text) + head(config.text) == costs.step  # 2 FLOP, 2 bytes
    assert costs.key == 57_344
    assert costs.page == 64 * 57_344


def test_a_chunk_of_chunks():
    costs = Costs.of(ModelConfig())
    assert costs.chunk(0, 300) + costs.chunk(300, 1000) == pytest.approx(costs.chunk(0, 1000))


@pytest.mark.parametrize("costs", [Costs.of(ModelConfig()), Costs(token=1e-5)])
@pytest.mark.parametrize("start", [0, 64, 45_000])
def test_the_most_tokens_take_no_longer(costs, start):
    for seconds in (1e-4, 0.01, 0.5):
        most = costs.most(start, seconds)
        assert costs.chunk(start, start + most) <= seconds * (1 + 1e-9) < costs.chunk(start, start + most + 1) + 1e-9
    assert costs.most(start, 0.0) == costs.most(start, -1.0) == 0
    assert costs.most(start, math.inf) > 1e9


def test_nothing_is_predicted():
    assert Costs().most(10, 0.01) > 1e9
    assert Costs().budget == math.inf
