"""residual_quantize against exhaustive search in float64, ties and near ties, and what its docstring promises."""

import pytest
import torch

import afn_kernels as ak

IMPLS = ["triton", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
def test_no_code_is_further_than_the_nearest_but_for_rounding(impl, device):
    """Levels of one size, where many codes are about as near. What is left is what the op's own codes leave."""
    x, books = torch.randn(33, 40, device=device), torch.randn(4, 70, 40, device=device)
    codes, total = ak.residual_quantize(x, books, impl=impl)
    taken = torch.zeros_like(x)
    for level, book in enumerate(books):
        r, e = (x - taken).double(), book.double()
        far = (r[:, None] - e).square().sum(2)
        size = 2 * r.norm(dim=1) * e.norm(dim=1).max() + e.square().sum(1).max()
        excess = far.gather(1, codes[:, level : level + 1])[:, 0] - far.min(1).values
        assert (excess <= 2 * 44 * 2.0**-23 * size).all()
        taken += book[codes[:, level]]
    assert torch.equal(taken, total)


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to 10 bits after the point, as a matrix unit would take it."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("impl", IMPLS)
def test_float32_tells_apart_what_tf32_cannot(impl, device):
    """Pairs of codes that differ by 2⁻¹³ in their first element, and rows 4 beside them: 2⁻¹⁰ nearer to one."""
    halves = torch.cat((torch.ones(16, 1), torch.eye(16)), 1)
    books = torch.cat((halves, halves))[None].to(device)
    books[0, 16:, 0] += 2.0**-13
    wanted = torch.randperm(32, device=device)
    x = books[0, wanted]
    x[:, 0] = torch.where(wanted < 16, -3.0, 5.0)
    codes, _ = ak.residual_quantize(x, books, impl=impl)
    assert torch.equal(codes[:, 0], wanted)
    rounded = books[0].square().sum(1) - 2 * tf32(x) @ tf32(books[0]).T
    assert not torch.equal(rounded.argmin(1), wanted)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_lowest_code_wins_a_tie(impl, device):
    book = torch.randn(5, 24, device=device)
    books = torch.cat((book, book.flip(0), torch.zeros(60, 24, device=device), book))[None]
    codes, total = ak.residual_quantize(book, books, impl=impl)
    assert codes[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(total, book)
    middle = torch.zeros(1, 8, device=device)
    pair = torch.ones(1, 2, 8, device=device)
    pair[0, 0] = -1
    assert ak.residual_quantize(middle, pair, impl=impl)[0].item() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_that_is_no_number_takes_code_0_and_leaves_the_others_alone(impl, device):
    x, books = torch.randn(5, 24, device=device), torch.randn(2, 9, 24, device=device)
    clean, _ = ak.residual_quantize(x, books, impl=impl)
    x[2, 7] = float("nan")
    codes, total = ak.residual_quantize(x, books, impl=impl)
    assert codes[2].tolist() == [0, 0]
    assert torch.equal(total[2], books[0, 0] + books[1, 0])
    assert torch.equal(codes[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
    books[0, 4] = float("nan")
    assert not (ak.residual_quantize(x, books, impl=impl)[0][:, 0] == 4).any()


@pytest.mark.parametrize("impl", IMPLS)
def test_levels_that_are_filled_later_are_those_of_what_is_left(impl, device):
    """A prefix by ``levels``, then the rest of what it leaves by ``first``: the whole."""
    x, books = (torch.randint(-8, 9, shape, device=device) / 8 for shape in ((7, 24), (5, 19, 24)))  # nothing rounds
    codes, total = ak.residual_quantize(x, books, impl=impl)
    known = torch.tensor([0, 1, 2, 3, 4, 5, 2], device=device)
    some, begun = ak.residual_quantize(x, books, known, impl=impl)
    rest, ended = ak.residual_quantize(x - begun, books, first=known, impl=impl)
    inside = torch.arange(5, device=device) < known[:, None]
    assert torch.equal(some, torch.where(inside, codes, -1))
    assert torch.equal(rest, torch.where(inside, -1, codes))
    assert torch.equal(begun + ended, total)


def test_bad_input_and_no_gradient():
    x, books = torch.ones(3, 4, requires_grad=True), torch.ones(2, 5, 4, requires_grad=True)
    assert not any(y.requires_grad for y in ak.residual_quantize(x, books))
    assert ak.residual_quantize(x, books[:0])[0].shape == (3, 0)
    for arguments, message in (
        ((x[0], books), r"x \(4,\), codebooks \(2, 5, 4\) do not fit \[T, D\], \[L, K, D\]"),
        ((x, books[..., :3]), r"codebooks \(2, 5, 3\) do not fit"),
        ((x, books[:, :0]), r"codebooks \(2, 0, 4\) do not fit"),
        ((x, books, 3), "levels is 3, expected 0 to 2"),
        ((x, books, None, -1), "first is -1, expected 0 to 2"),
        ((x, books, torch.tensor([0, 1, 3])), "levels runs from 0 to 3, expected 0 to 2"),
        ((x, books, torch.tensor([0, 1])), r"levels is torch.int64 \[2\], expected int64 \[3\]"),
        ((x, books, torch.ones(3)), "levels is torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            ak.residual_quantize(*arguments)
