import math

import pytest
import torch
import torch.nn.functional as F

import afn_kernels as ak
from tests.budget import assert_within


def make(dtype=torch.float64):
    """Logits of two sequences and labels, some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 6, 30, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 30, (2, 6), generator=generator)
    labels[0, 1:4] = -100
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options_are_pytorchs(reduction, smoothing):
    logits, labels = make()
    options = {"ignore_index": -100, "label_smoothing": smoothing, "reduction": reduction}
    expected = F.cross_entropy((5 * torch.tanh(logits / 5)).flatten(0, 1), labels.flatten(), **options)
    found = ak.cross_entropy(logits, labels, softcap=5, **options)
    assert found.shape == (labels.shape if reduction == "none" else ())
    assert torch.allclose(found.flatten(), expected.flatten(), atol=1e-12)


def test_z_loss_is_that_of_supervised_rows():
    logits, labels = make()
    each = [ak.cross_entropy(logits, labels, z_loss=z, reduction="none") for z in (0.01, 0.0)]
    expected = 0.01 * logits.logsumexp(-1).square() * (labels >= 0)
    assert torch.allclose(each[0] - each[1], expected, atol=1e-12)
    mean = ak.cross_entropy(logits, labels, z_loss=0.01)
    assert torch.allclose(mean, each[0].sum() / (labels >= 0).sum(), atol=1e-12)


def test_it_is_linear_cross_entropy_of_the_product():
    hidden, weight = torch.randn(12, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    options = {"softcap": 4.0, "label_smoothing": 0.1, "z_loss": 0.01}
    _, labels = make()
    expected = ak.linear_cross_entropy(hidden, weight, labels.flatten(), **options)
    assert torch.allclose(ak.cross_entropy(hidden @ weight.T, labels.flatten(), **options), expected, atol=1e-12)


def test_gradients():
    logits, labels = make()
    options = {"softcap": 4.0, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda x: ak.cross_entropy(x, labels, **options), logits.requires_grad_())


def test_no_supervision_at_all_is_zero():
    logits, labels = make()
    assert ak.cross_entropy(logits.requires_grad_(), torch.full_like(labels, -100)) == 0


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_what_is_ignored_may_hold_anything_and_a_wrong_label_is_nan(softcap, device):
    """Straight to the implementation: on the CPU the public op raises before it."""
    pytest.importorskip("triton")
    from afn_kernels.cross_entropy import boundary

    logits, labels = (x.to(device) for x in make(torch.float32))
    logits[labels < 0] = float("nan")
    options = {"ignore_index": -100, "label_smoothing": 0.1, "softcap": softcap, "z_loss": 0.0}
    for wrong in (False, True):
        labels[1, 2] = 30 if wrong else 3
        x = logits.clone().requires_grad_()
        loss = boundary.cross_entropy(x, labels, reduction="none", **options)
        loss.sum().backward()
        expected = torch.zeros_like(labels, dtype=torch.bool)
        expected[1, 2] = wrong
        assert torch.equal(loss.isnan(), expected)
        assert torch.equal(x.grad.isnan().all(-1), expected)
        assert not x.grad[labels < 0].any()
        assert boundary.cross_entropy(x, labels, reduction="mean", **options).isnan() == wrong


def test_nan_logits_give_nan_under_a_cap_too(device):
    pytest.importorskip("triton")
    logits, labels = (x.to(device) for x in make(torch.float32))
    logits[1, 4, 7] = float("nan")
    assert ak.cross_entropy(logits, labels, softcap=4.0, reduction="none", impl="triton").isnan().sum() == 1


def test_the_kernels_tanh_keeps_small_numbers(device):
    """Within 4 units in the last place: a reciprocal, an exponential of twice the argument, and two products."""
    triton = pytest.importorskip("triton")
    import triton.language as tl

    from afn_kernels.cross_entropy.triton import tanh

    @triton.jit
    def run(x, y, N: tl.constexpr, tanh: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(y + i, tanh(tl.load(x + i)))

    x = torch.cat([torch.logspace(-30, 4, 2047), torch.tensor([float("inf")])]) * torch.tensor([1.0, -1.0]).repeat(1024)
    x = x.to(device)
    y = torch.empty_like(x)
    run[(1,)](x, y, len(x), tanh)
    expected = x.double().tanh()
    assert_within(y, expected, 4 * torch.finfo(torch.float32).eps * expected.abs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 30}, "label 30 at row 7 is outside 0..29"),
        ({"reduction": "median"}, "'median'"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"labels": torch.int32}, "expected int64"),
        ({"logits": torch.int64}, "logits is torch.int64"),
        ({"rows": 1}, r"the shapes logits \(1, 6, 30\), labels \(2, 6\) do not fit"),
    ],
)
def test_bad_input(change, message):
    change = dict(change)
    logits, labels = make()
    labels[1, 1] = change.pop("label", 3)
    logits = logits[: change.pop("rows", 2)].to(change.pop("logits", torch.float64))
    with pytest.raises(ValueError, match=message):
        ak.cross_entropy(logits, labels.to(change.pop("labels", torch.int64)), **change)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_row_that_is_ignored_may_hold_anything(impl):
    logits = torch.randn(3, 5)
    logits[1] = float("nan")
    logits.requires_grad_()
    loss = ak.cross_entropy(logits, torch.tensor([0, -100, 2]), impl=impl)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert not grad[1].any()


@pytest.mark.parametrize("shut", [slice(0, 17_000), slice(3000, 20_000), slice(8192, 16_384)], ids=str)
def test_classes_that_are_shut_out_by_the_block(shut):
    """A masked vocabulary: a running maximum sees nothing but −inf for whole blocks."""
    logits = torch.randn(2, 20_000)
    logits[0, shut] = -torch.inf
    labels = torch.tensor([2000 if shut.start else 18_000, 5])
    logits.requires_grad_()
    found = ak.cross_entropy(logits, labels, reduction="none", impl="triton")
    expected = F.cross_entropy(logits.detach().double(), labels, reduction="none")
    # Both add up 20,000 exponentials in float32, each rounded to within two units in the last place.
    assert_within(found, expected, 4 * torch.finfo(torch.float32).eps * (expected.abs() + 20_000**0.5))
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad.isfinite().all()
    assert not grad[0, shut].any()


def test_a_row_of_lowest_numbers_is_uniform():
    logits = torch.full((1, 700), torch.finfo(torch.float32).min)
    loss = ak.cross_entropy(logits, torch.tensor([3]), impl="triton")
    # A sum of 700 ones is exact; the logarithm is within two units in the last place.
    assert_within(loss, torch.tensor(math.log(700)), 2 * torch.finfo(torch.float32).eps * math.log(700))


@pytest.mark.parametrize("softcap", [0.0, -1.0, float("inf"), float("nan")])
def test_caps_are_finite_numbers_above_zero(softcap):
    with pytest.raises(ValueError, match="softcap is"):
        ak.cross_entropy(torch.randn(3, 5), torch.zeros(3, dtype=torch.int64), softcap=softcap)
