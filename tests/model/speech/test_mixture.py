import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import afn_kernels as ak
from afn_model.config import TextConfig
from afn_model.speech.config import TalkerConfig
from afn_model.speech.mixture import FrameMixture, MixtureHead, code_sums, levels_known

ROWS, K, D, LEVELS, CODES = 5, 7, 6, 4, 9


def config(**changes) -> TalkerConfig:
    text = TextConfig(50, 16, 1, 1, 1, 24, max_positions=512)
    return TalkerConfig(text, head_width=12, components=K, iterations=3, **changes)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def mixture() -> FrameMixture:
    return FrameMixture(drawn(ROWS, K), drawn(ROWS, D), drawn(ROWS, D).exp(), 0.02 + drawn(ROWS, D).abs(), drawn(K, D))


def means(m: FrameMixture) -> torch.Tensor:
    return m.shift[:, None] + m.stretch[:, None] * m.centres


def test_likelihood_is_that_of_a_mixture_of_gaussians():
    m, z = mixture(), drawn(ROWS, D) * 3
    parts = Independent(Normal(means(m).double(), m.spread[:, None].double().expand(-1, K, -1)), 1)
    expected = -MixtureSameFamily(Categorical(logits=m.logits.double()), parts).log_prob(z.double())
    assert torch.allclose(m.nll(z).double(), expected, rtol=2e-5, atol=1e-4)


def test_likelihood_far_from_every_component_is_finite_and_has_gradients():
    m = mixture()
    shift = m.shift.clone().requires_grad_()
    loss = FrameMixture(m.logits, shift, m.stretch, m.spread, m.centres).nll(drawn(ROWS, D) * 1e6).sum()
    loss.backward()
    assert loss.isfinite()
    assert shift.grad is not None
    assert shift.grad.isfinite().all()
    assert shift.grad.abs().max() > 1


def test_samples_are_drawn_by_weight_and_deviation():
    m, count = mixture(), 4000
    logits, shift, stretch, spread = (x[:1].expand(count, -1) for x in (m.logits, m.shift, m.stretch, m.spread))
    one = FrameMixture(logits, shift, stretch, spread, m.centres)
    generator = torch.Generator().manual_seed(0)
    uniform, normal = torch.rand(count, generator=generator), torch.randn(count, D, generator=generator)
    found = one.sample(uniform, normal, 1.0, 0.0)
    nearest = torch.cdist(found, means(m)[0]).argmin(1).bincount(minlength=K) / count
    assert torch.allclose(nearest, m.logits[0].softmax(0), atol=0.03)
    moved = one.sample(uniform, normal, 1.0, 0.5) - found
    assert torch.allclose(moved.std(0), 0.5 * m.spread[0], rtol=0.05)
    likeliest = m.sample(uniform[:ROWS], normal[:ROWS], 0.0, 0.0)
    assert torch.allclose(likeliest, means(m)[torch.arange(ROWS), m.logits.argmax(1)])


@pytest.mark.parametrize(
    ("levels", "iterations", "schedule", "known"),
    [
        (72, 4, "cosine", (5, 21, 44, 72)),
        (72, 4, "even", (18, 36, 54, 72)),
        (8, 8, "cosine", (1, 2, 3, 4, 5, 6, 7, 8)),
        (3, 1, "even", (3,)),
    ],
)
def test_every_iteration_fills_a_level_at_least(levels, iterations, schedule, known):
    assert levels_known(levels, iterations, schedule) == known


def test_levels_are_filled_with_what_quantising_the_samples_gives():
    torch.manual_seed(0)
    head = MixtureHead(config(), D, LEVELS)
    books, hidden = drawn(LEVELS, CODES, D), drawn(ROWS, 16)
    uniform, normal = torch.rand(ROWS, 3), drawn(ROWS, 3, D)
    codes, total = head.fill(hidden, books, uniform, normal, temperature=0.7, noise=0.9)
    assert torch.allclose(total, code_sums(codes, books), atol=1e-5)
    first = 0
    for j, last in enumerate(head.known):
        known = code_sums(codes, books, torch.full((ROWS,), first))
        sample = head(hidden, known, torch.full((ROWS,), first)).sample(uniform[:, j], normal[:, j], 0.7, 0.9)
        expected = ak.residual_quantize(sample, books, first=first)[0][:, first:last]
        assert torch.equal(codes[:, first:last], expected)
        first = last
    assert first == LEVELS


def test_sums_leave_out_unknown_levels_and_missing_codes():
    books, codes = drawn(LEVELS, CODES, D), torch.tensor([[1, 2, 3, 4], [8, 0, -1, -1]])
    expected = books[0, 1] + books[1, 2], books[0, 8] + books[1, 0]
    assert torch.allclose(code_sums(codes, books, torch.tensor([2, 4])), torch.stack(expected), atol=1e-6)
    assert code_sums(codes[:0], books).shape == (0, D)


def test_depths_of_training_are_all_drawn_and_few_levels_more_often():
    head = MixtureHead(config(), D, LEVELS)
    counts = head.draw_known(2000, 1, torch.Generator().manual_seed(0)).flatten().bincount(minlength=LEVELS)
    assert len(counts) == LEVELS
    assert counts.min() > 100
    assert counts[0] > 1.5 * counts[-1]
    several = head.draw_known(2000, 3)
    assert not several[:, 0].any()
    assert several[:, 1:].max() == LEVELS - 1


def test_more_iterations_than_levels_are_refused():
    with pytest.raises(ValueError, match="3 iterations for 2 levels"):
        MixtureHead(config(), D, 2)
