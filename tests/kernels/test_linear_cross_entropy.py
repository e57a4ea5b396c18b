import pytest
import torch

import afn_kernels as ak


def make(rows=12, width=8, vocabulary=30, ignored=(0, 5, 11), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[list(ignored)] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_log_softmax_of_the_logits(reduction):
    hidden, weight, labels = make()
    kept = labels >= 0
    logprob = (hidden @ weight.T).log_softmax(-1)[kept].gather(1, labels[kept][:, None])
    expected = -logprob.mean() if reduction == "mean" else -logprob.sum()
    assert torch.allclose(ak.linear_cross_entropy(hidden, weight, labels, reduction=reduction), expected, atol=1e-12)


def test_rows_without_supervision_get_no_gradient_and_may_hold_anything():
    hidden, weight, labels = make()
    hidden[labels < 0] = float("nan")
    hidden.requires_grad_()
    ak.linear_cross_entropy(hidden, weight, labels).backward()
    assert torch.isfinite(hidden.grad).all()
    assert not hidden.grad[labels < 0].any()


def test_no_supervision_at_all_is_zero_with_zero_gradient():
    hidden, weight, labels = make(ignored=range(12))
    hidden.requires_grad_()
    loss = ak.linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not hidden.grad.any()


def test_frozen_weight_gets_no_gradient():
    hidden, weight, labels = make()
    hidden.requires_grad_()
    ak.linear_cross_entropy(hidden, weight, labels).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_gradients():
    hidden, weight, labels = make(rows=4, width=3, vocabulary=5, ignored=(1,))
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: ak.linear_cross_entropy(h, w, labels), inputs)
    assert torch.autograd.gradcheck(lambda h, w: ak.linear_logprob(h, w, labels.clamp(min=0)), inputs)


def test_logprob_is_the_negated_loss_of_each_row():
    hidden, weight, labels = make(ignored=())
    logprob = ak.linear_logprob(hidden, weight, labels)
    assert torch.allclose(-logprob.mean(), ak.linear_cross_entropy(hidden, weight, labels), atol=1e-12)


def test_low_precision_inputs_give_a_float32_loss():
    hidden, weight, labels = make(dtype=torch.bfloat16)
    assert ak.linear_cross_entropy(hidden, weight, labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 30}, "label 30 at row 3 is outside 0..29"),
        ({"label": -1}, "label -1 at row 3"),
        ({"reduction": "median"}, "'median'"),
        ({"width": 7}, r"\(12, 7\)"),
    ],
)
def test_bad_input(change, message):
    hidden, weight, labels = make()
    labels[3] = change.get("label", labels[3])
    with pytest.raises(ValueError, match=message):
        ak.linear_cross_entropy(
            hidden[:, : change.get("width", 8)], weight, labels, reduction=change.get("reduction", "mean")
        )
