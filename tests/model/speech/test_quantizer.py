"""The residual quantiser: how codes move, how dead ones start anew."""

import pytest
import torch

from tests.model.speech.small import CONFIG, quantizer

ROWS = torch.randn(3, 40, CONFIG.latent, generator=torch.Generator().manual_seed(5))


def test_given_levels_are_taken():
    quantized = quantizer().eval()(ROWS, 2)
    assert (quantized.codes[..., :2] >= 0).all()
    assert (quantized.codes[..., 2:] == -1).all()
    assert torch.allclose(quantizer().embed(quantized.codes), quantized.embedding, atol=1e-6)
    full = quantizer().eval()(ROWS)
    assert torch.equal(full.codes[..., :2], quantized.codes[..., :2])


def test_the_moving_average_is_the_formula():
    books = quantizer(dead_below=1e-9)
    books.usage.fill_(2.0)
    old = books.codebooks.clone()
    for part in ROWS.split(1):  # two calls before the update count as one
        books.train()(part, CONFIG.levels)
    codes = books.eval()(ROWS).codes.reshape(-1, CONFIG.levels)
    books.update()
    left = ROWS.reshape(-1, CONFIG.latent)
    for level in range(CONFIG.levels):
        for code in range(CONFIG.codes):
            mine = codes[:, level] == code
            usage = 0.99 * 2.0 + 0.01 * mine.sum()
            moved = (0.99 * 2.0 * old[level, code] + 0.01 * left[mine].sum(0)) / usage
            assert torch.allclose(books.usage[level, code], usage)
            assert torch.allclose(books.codebooks[level, code], moved, atol=1e-5)
        left = left - old[level, codes[:, level]]


def test_an_update_without_anything_seen_changes_nothing():
    books = quantizer()
    old = books.codebooks.clone()
    books.train()(torch.zeros(0, CONFIG.latent))
    books.eval()(ROWS)
    books.update()
    assert torch.equal(books.codebooks, old)


def test_dead_codes_start_anew_from_residuals_and_always_the_same_way():
    made = []
    for _ in range(2):
        books = quantizer()
        books.codebooks[0, 3:] = 1e3  # never the nearest
        books.usage.fill_(1.0)
        books.usage[0, 3:] = 1e-3
        books.train()(ROWS, CONFIG.levels)
        books.update()
        made.append(books.codebooks.clone())
        rows = ROWS.reshape(-1, CONFIG.latent)
        for code in range(3, CONFIG.codes):
            assert (rows == books.codebooks[0, code]).all(1).any(), "the first level's residuals are the latents"
        assert (books.usage[0, 3:] > 0.1).all()
        assert not torch.isin(books.codebooks[0, :3], rows).any()
    assert torch.equal(*made)


def test_codes_start_anew_from_rows_that_pass_their_level_and_from_each_once():
    books, rows = quantizer(), ROWS[0, :6]
    books.usage.fill_(1e-9)
    old = books.codebooks.clone()
    books.train()(rows, torch.tensor([1, 1, 1, 1, 1, 4]))
    left = rows[5]
    codes = books.eval()(rows[5:], CONFIG.levels).codes[0]
    books.update()
    anew = (books.codebooks - old).abs().amax(2) > 1e-3
    assert torch.isclose(books.codebooks[0][:, None], rows).all(2).sum(0).le(2).all()
    for level in range(1, CONFIG.levels):
        left = left - old[level - 1, codes[level - 1]]
        assert anew[level].sum() <= 2  # one starts anew, and one is moved by its own
        assert torch.allclose(books.codebooks[level][anew[level]], left.expand(int(anew[level].sum()), -1), atol=1e-5)


def test_codes_spread_over_all_data():
    torch.manual_seed(0)
    books = quantizer(decay=0.8).train()
    centres = torch.randn(CONFIG.codes, CONFIG.latent)
    before = (books.eval()(centres).embedding - centres).square().mean()
    for _ in range(60):
        books.train()(centres[torch.randint(len(centres), (200,))] + 0.01 * torch.randn(200, CONFIG.latent))
        books.update()
    after = (books.eval()(centres).embedding - centres).square().mean()
    assert before > 0.3
    assert after < 0.01


def test_standardising_follows_the_average_of_what_it_is_given():
    books, rows = quantizer(decay=0.5).train(), 3 + 2 * torch.randn(500, CONFIG.latent)
    books(books.standardize(rows), 4)
    books.update()  # the first: all of it
    assert torch.allclose(books.mean, rows.mean(0), atol=1e-4)
    assert torch.allclose(books.deviation, rows.std(0, correction=0), atol=1e-3)
    more = rows + 4
    books(books.standardize(more), 4)
    books.update()  # by half, the square's too
    assert torch.allclose(books.mean, rows.mean(0) + 2, atol=1e-3)
    assert torch.allclose(books.deviation.square(), rows.var(0, correction=0), rtol=1e-3)


def test_ranks_that_add_up_move_alike():
    together, first, second = quantizer(), quantizer(), quantizer()
    together.train()(ROWS[:1], 4), together(ROWS[1:], 4)
    first.train()(ROWS[:1], 4), second.train()(ROWS[1:], 4)
    parts = [[*rank._seen] for rank in (first, second)]
    sums = [a + b for a, b in zip(parts[0][:-1], parts[1][:-1], strict=True)] + [parts[1][-1]]
    for books in (first, second):
        books.update(lambda seen: sums)
    together.update()
    assert torch.equal(first.codebooks, second.codebooks)
    assert torch.allclose(first.codebooks, together.codebooks, atol=1e-6)


def test_gradients_pass_straight_through():
    latent = ROWS.clone().requires_grad_()
    quantized = quantizer().train()(latent, 4)
    weight = torch.randn_like(ROWS)
    (quantized.embedding * weight).sum().backward()
    assert torch.equal(latent.grad, weight)
    latent.grad = None
    quantizer().train()(latent, 4).commitment.backward()
    assert torch.allclose(latent.grad, 2 * (ROWS - quantized.embedding.detach()) / ROWS.numel(), atol=1e-7)


def test_codes_that_learn_by_gradient():
    books = quantizer(codebook="gradient").train()
    quantized = books(ROWS, torch.tensor([[1], [2], [4]]).expand(3, 40))
    quantized.codebook.backward()
    codes = quantized.codes.reshape(-1, 4)
    left, wanted = ROWS.reshape(-1, CONFIG.latent), torch.zeros_like(books.codebooks)
    for level in range(4):
        for row, code in enumerate(codes[:, level]):
            if code >= 0:
                wanted[level, code] += 2 * (books.codebooks[level, code] - left[row]).detach()
        left = left - books.embed(torch.where(torch.arange(4) == level, codes, -1)).detach()
    assert torch.allclose(books.codebooks.grad, wanted / ((codes >= 0).sum() * CONFIG.latent), atol=1e-6)
    assert isinstance(books.codebooks, torch.nn.Parameter)
    assert quantizer().train()(ROWS).codebook == 0


def test_codes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"^5 levels of codes, but the codec has 4$"):
        quantizer().embed(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^codes must be from -1 to 15$"):
        quantizer().embed(torch.tensor([[16]]))
    assert torch.equal(quantizer().embed(torch.full((2, 4), -1)), torch.zeros(2, CONFIG.latent))
