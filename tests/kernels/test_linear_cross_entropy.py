import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import afn_kernels as ak
from tests.budget import assert_within
from tests.kernels.cases.linear_cross_entropy import CASES
from tests.kernels.harness import check_budget


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
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    options = {"softcap": 3.0, "label_smoothing": 0.1, "z_loss": 0.1, "reduction": "none"}
    call = lambda h, w, b: ak.linear_cross_entropy(h, w, labels, bias=b, **options)  # noqa: E731
    assert torch.autograd.gradcheck(call, (*inputs, bias))
    assert torch.autograd.gradcheck(lambda h, w: ak.linear_logprob(h, w, labels.clamp(min=0)), inputs)


def test_logprob_is_the_negated_loss_of_each_row():
    hidden, weight, labels = make(ignored=())
    logprob = ak.linear_logprob(hidden, weight, labels)
    assert torch.allclose(-logprob.mean(), ak.linear_cross_entropy(hidden, weight, labels), atol=1e-12)


def test_low_precision_inputs_give_a_float32_loss():
    hidden, weight, labels = make(dtype=torch.bfloat16)
    assert ak.linear_cross_entropy(hidden, weight, labels).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_z_loss_is_the_mean_of_the_squared_log_sum_exp(reduction):
    hidden, weight, labels = make()
    lse = (hidden @ weight.T).logsumexp(-1)[labels >= 0]
    expected = getattr(lse.square(), reduction)()
    with_z, without = (
        ak.linear_cross_entropy(hidden, weight, labels, reduction=reduction, z_loss=z) for z in (0.01, 0.0)
    )
    assert torch.allclose(with_z - without, 0.01 * expected, atol=1e-12)


@pytest.mark.parametrize(("hidden", "weight"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_a_weight_of_another_dtype_is_refused(hidden, weight):
    h, w, labels = make()
    with pytest.raises(ValueError, match=f"weight is {weight} on cpu, expected {hidden}, as hidden"):
        ak.linear_cross_entropy(h.to(hidden), w.to(weight), labels)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options_are_those_of_cross_entropy_on_logits(reduction):
    hidden, weight, labels = make()
    bias = torch.linspace(-1, 1, 30, dtype=torch.float64)
    options = {"label_smoothing": 0.2, "reduction": reduction}
    logits = 5 * torch.tanh(F.linear(hidden, weight, bias) / 5)
    expected = F.cross_entropy(logits, labels, **options)
    found = ak.linear_cross_entropy(hidden, weight, labels, bias=bias, softcap=5, **options)
    assert torch.allclose(found, expected, atol=1e-12)
    logprob = logits.log_softmax(-1)[:, 3]
    targets = torch.full_like(labels, 3)
    assert torch.allclose(ak.linear_logprob(hidden, weight, targets, bias=bias, softcap=5), logprob, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_autocast_is_a_linear_layer_in_its_dtype(impl, triton):
    """From float32 tensors the product is in bfloat16 and the rest in float32; gradients are float32."""
    hidden, weight, labels = make(dtype=torch.float32)
    bias = torch.linspace(-1, 1, 30)
    tensors = [x.requires_grad_() for x in (hidden, weight, bias)]

    def found(low: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = ak.linear_cross_entropy(hidden if low else hidden.bfloat16(), weight, labels, bias=bias, impl=impl)
        return [loss, *torch.autograd.grad(loss, tensors)]

    for a, b in zip(found(True), found(False), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_one_graph_under_autocast():
    hidden, weight, labels = make(dtype=torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(hidden, weight):
        return ak.linear_cross_entropy(hidden, weight, labels, softcap=5.0, label_smoothing=0.1, reduction="none")

    tensors = [x.requires_grad_() for x in (hidden, weight)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(*tensors)
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss.sum(), tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 30}, "label 30 at row 3 is outside 0..29"),
        ({"label": -1}, "label -1 at row 3"),
        ({"reduction": "median"}, "'median'"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5, expected 0 to 1"),
        ({"softcap": 0.0}, "softcap is 0.0, expected a finite number above 0"),
        ({"labels": torch.int32}, r"labels are torch.int32 on cpu, expected int64 on cpu: labels.long\(\)"),
        ({"bias": torch.zeros(7)}, "bias is torch.float32 on cpu, expected torch.float64"),
        ({"bias": torch.zeros(7, dtype=torch.float64)}, r"bias has shape \(7,\), expected \(30,\)"),
        ({"supervised": 8}, "supervised is 8, but 9 rows have a label"),
        ({"supervised": 13}, "supervised is 13 for 12 rows"),
        ({"width": 7}, r"\(12, 7\)"),
    ],
)
def test_bad_input(change, message):
    hidden, weight, labels = make()
    change = dict(change)
    labels[3] = change.pop("label", labels[3])
    with pytest.raises(ValueError, match=message):
        ak.linear_cross_entropy(
            hidden[:, : change.pop("width", 8)], weight, labels.to(change.pop("labels", torch.int64)), **change
        )


@pytest.fixture
def triton(device, request):
    """The module of the kernels; on a machine that cannot run them, a skip."""
    pytest.importorskip("triton")
    from afn_kernels.linear_cross_entropy import triton

    return triton


def test_gathered_rows_need_an_aligned_width_too(triton):
    """Rows of 24 elements are whole multiples of 16 bytes apart; a copy of their first 20 has rows of 40 bytes."""
    wide = torch.zeros(4, 24, dtype=torch.float16)
    assert triton.fused(wide, wide)
    assert not triton.fused(wide[:, :20], wide[:, :20])


def small_chunks(triton, monkeypatch, rows: int = 16, classes: int = 320, size: int = 4):
    """A walk in several chunks, each a row or a few of small tensors."""
    chunk = replace(triton.config.CHUNK, scratch=rows * classes * size, multiple=rows)
    monkeypatch.setattr(triton.config, "CHUNK", chunk)
    monkeypatch.setattr(triton.config, "SEGMENT", 32)
    monkeypatch.setattr(triton.config, "PRODUCT", 128)


@pytest.mark.parametrize("case", [case for case in CASES if case.size > 20], ids=str)
def test_many_chunks_stay_within_the_budget(case, triton, device, monkeypatch):
    small_chunks(triton, monkeypatch)
    for dtype in case.dtypes:
        check_budget(case, dtype, device, "triton")


def on(device, dtype=torch.float32):
    return [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in make()]


def test_products_add_up_in_float32_and_the_setting_comes_back(triton, device, monkeypatch):
    settings, seen, mm = torch.backends.cuda.matmul, [], torch.mm

    def product(*args, **kwargs):
        seen.append((settings.allow_bf16_reduced_precision_reduction, settings.allow_fp16_reduced_precision_reduction))
        if len(seen) == 3:
            raise RuntimeError("no memory")
        return mm(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", product)
    hidden, weight = torch.randn(3, 16, device=device), torch.randn(9, 16, device=device)
    with pytest.raises(RuntimeError, match="no memory"):
        ak.linear_cross_entropy(
            hidden.requires_grad_(), weight.requires_grad_(), torch.arange(3, device=device), impl="triton"
        ).backward()
    assert seen == [(False, False)] * 3
    assert settings.allow_bf16_reduced_precision_reduction
    assert settings.allow_fp16_reduced_precision_reduction


def test_the_setting_comes_back_whole_and_once_for_all_threads(triton):
    settings, name = torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"
    default = triton._setting(settings, name)
    forbidden = (False, False) if isinstance(default, tuple) else False
    setattr(settings, name, forbidden)
    try:
        first, second = triton.float32_sums(), triton.float32_sums()  # two threads, neither within the other
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not getattr(settings, name)
        assert not settings.allow_fp16_reduced_precision_reduction
        second.__exit__(None, None, None)
        assert triton._setting(settings, name) == forbidden
        assert settings.allow_fp16_reduced_precision_reduction
    finally:
        setattr(settings, name, default)
    assert triton._setting(settings, name) == default


def test_an_older_setting_is_a_bool(triton):
    assert triton._setting(SimpleNamespace(reduced=True), "reduced") is True


def test_rows_without_supervision_are_never_multiplied(triton, device):
    hidden, weight, labels = on(device)
    hidden[labels < 0] = float("nan")
    hidden.requires_grad_()
    weight.requires_grad_()
    for supervised in (None, 9):
        loss = ak.linear_cross_entropy(hidden, weight, labels, supervised=supervised, impl="triton")
        assert torch.isfinite(loss)
        dh, dw = torch.autograd.grad(loss, (hidden, weight))
        assert torch.isfinite(dw).all()
        assert not dh[labels < 0].any()
        with torch.no_grad():
            half = [x.half() for x in (hidden, weight)]
            assert torch.isfinite(ak.linear_cross_entropy(*half, labels, supervised=supervised, impl="triton"))


def test_the_number_of_labels_changes_no_bit(triton, device):
    found = []
    for supervised in (None, 9):
        hidden, weight, labels = on(device)
        hidden.requires_grad_()
        weight.requires_grad_()
        loss = ak.linear_cross_entropy(hidden, weight, labels, supervised=supervised, impl="triton")
        found.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_gradients_kept_for_another_backward_stay_what_they_were(triton, device):
    hidden, weight, labels = on(device)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = ak.linear_cross_entropy(hidden, weight, labels, impl="triton")
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    copies = [x.clone() for x in once]
    twice = torch.autograd.grad(2 * loss, (hidden, weight), retain_graph=True)
    last = torch.autograd.grad(4 * loss, (hidden, weight))
    for a, b, c, d in zip(once, copies, twice, last, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(c, 2 * a)
        assert torch.equal(d, 4 * a)


OFF = {"bias": None, "label_smoothing": 0.0, "softcap": None, "z_loss": 0.0}


@pytest.mark.parametrize(("dtype", "softcap"), [(torch.float32, None), (torch.float16, 4.0)])
def test_what_cannot_be_checked_on_a_gpu_gives_nan(dtype, softcap, triton, device):
    """Straight to the implementation: on the CPU the public op raises before it."""
    from afn_kernels.linear_cross_entropy import boundary

    hidden, weight, labels = on(device, dtype)
    options = OFF | {"ignore_index": -100, "softcap": softcap}
    wrong = labels.clone()
    wrong[3] = len(weight)
    for grad in (False, True):
        hidden.requires_grad_(grad)
        for bad, supervised in ((wrong, None), (labels, 8), (labels, 10)):
            loss = boundary.linear_cross_entropy(
                hidden, weight, bad, supervised=supervised, reduction="mean", **options
            )
            assert loss.isnan()
            each = boundary.linear_cross_entropy(
                hidden, weight, bad, supervised=supervised, reduction="none", **options
            )
            assert each.isnan().nonzero().tolist() == ([[3]] if supervised is None else [[i] for i in range(12)])
        logprob = boundary.linear_logprob(hidden, weight, wrong.clamp(min=0), bias=None, softcap=softcap)
        assert logprob.isnan().nonzero().tolist() == [[3]]
    loss = boundary.linear_cross_entropy(hidden, weight, wrong, supervised=None, reduction="mean", **options)
    assert torch.autograd.grad(loss, hidden)[0][3].isnan().all()


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.shapes.append((*a.shape, b.shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wrt", [(), ("hidden",), ("weight",), ("hidden", "weight")], ids="+".join)
def test_products_are_of_supervised_rows_and_for_wanted_gradients(wrt, triton, device):
    hidden, weight, labels = on(device)
    hidden.requires_grad_("hidden" in wrt)
    weight.requires_grad_("weight" in wrt)
    with Products() as products:
        loss = ak.linear_cross_entropy(hidden, weight, labels, impl="triton")
        if wrt:
            loss.backward()
    expected = {"hidden": (9, 30, 8), "weight": (30, 9, 8)}  # rows, width and classes are 9 of 12, 8 and 30
    assert products.shapes == [(9, 8, 30), *(expected[name] for name in wrt)]


class Memory(TorchDispatchMode):
    """Counts the bytes that PyTorch calls allocate, and the most that live at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self.live and storage._cdata not in given:
                    self.live[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, storage._cdata)
        return out

    def free(self, key):
        self.now -= self.live.pop(key)


class Launches:
    """Stands in for a kernel."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def extra_memory(triton, monkeypatch, op, rows, width, classes, wrt, device, every=1, dtype=torch.bfloat16) -> int:
    """Most bytes alive at a time in forward and backward, beyond inputs and gradients. No kernel runs.

    Every ``every``-th row of linear_cross_entropy has no label; 1 leaves all of them their labels.
    """
    from afn_kernels.linear_cross_entropy import boundary

    for name in ("logsumexp_kernel", "logprob_kernel", "softmax_kernel", "scale_kernel"):
        monkeypatch.setattr(triton, name, Launches())
    hidden = torch.empty(rows, width, device=device, dtype=torch.bfloat16, requires_grad="hidden" in wrt)
    weight = torch.empty(classes, width, device=device, dtype=dtype, requires_grad="weight" in wrt)
    bias = torch.empty(classes, device=device, dtype=dtype, requires_grad=True) if "bias" in wrt else None
    labels, options = torch.zeros(rows, dtype=torch.int64), {"bias": bias, "softcap": None}
    if op == "linear_cross_entropy":
        labels[every - 1 :: every] = -100 if every > 1 else 0
        supervised = int((labels >= 0).sum())
        options = OFF | options | {"ignore_index": -100, "reduction": "mean", "supervised": supervised}
    labels = labels.to(device)
    with Memory() as memory:
        out = getattr(boundary, op)(hidden, weight, labels, **options)
        if wrt:
            out.sum().backward()
    return memory.peak - sum(x.grad.nbytes for x in (hidden, weight, bias) if x is not None and x.requires_grad)


CUBLAS = 32 * 2**20  # its workspace on Hopper, which is there whatever is multiplied


@pytest.mark.parametrize("wrt", [(), ("hidden",), ("weight",), ("hidden", "weight")], ids="+".join)
@pytest.mark.parametrize(
    ("op", "every"), [("linear_cross_entropy", 1), ("linear_cross_entropy", 100), ("linear_logprob", 1)]
)
def test_extra_memory_stays_below_half_a_gigabyte(op, every, wrt, triton, monkeypatch):
    """131,072 rows, all or 99 % of them supervised, at the size of the language model, on tensors without memory."""
    extra = extra_memory(triton, monkeypatch, op, 131_072, 3584, 151_672, wrt, "meta", every)
    assert 0 < extra + CUBLAS < 0.5e9


@pytest.mark.parametrize("op", ["linear_cross_entropy", "linear_logprob"])
def test_float32_parameters_cost_a_copy_in_16_bits(op, triton, monkeypatch):
    """45,000 rows, 30 minutes of audio; the copy lives in no longer than the call."""
    wrt, copy = ("hidden", "weight", "bias"), 2 * 3584 * 151_672
    extra = extra_memory(triton, monkeypatch, op, 45_000, 3584, 151_672, wrt, "meta", dtype=torch.float32)
    assert copy < extra + CUBLAS < copy + 0.5e9


@pytest.mark.parametrize("wrt", [(), ("hidden", "weight")], ids="+".join)
@pytest.mark.parametrize("op", ["linear_cross_entropy", "linear_logprob"])
def test_tensors_without_memory_account_for_real_ones(op, wrt, triton, monkeypatch):
    small_chunks(triton, monkeypatch, size=2)
    found = [extra_memory(triton, monkeypatch, op, 300, 48, 300, wrt, device, 3) for device in ("meta", "cpu")]
    assert found[0] == found[1] > 0


def test_a_bias_may_shut_out_whole_tiles_of_classes():
    hidden, weight, bias = torch.randn(2, 16).half(), torch.randn(700, 16).half(), torch.zeros(700)
    bias[256:512] = -torch.inf
    options = {"bias": bias, "reduction": "none"}
    labels = torch.tensor([600, 650])
    with torch.no_grad():
        found = ak.linear_cross_entropy(hidden, weight, labels, **options, impl="triton")
    oracle = F.cross_entropy(hidden.double() @ weight.double().T + bias.double(), labels, reduction="none")
    assert_within(found, oracle, 64 * torch.finfo(torch.float32).eps * (1 + oracle.abs()))


def test_a_graph_keeps_rows_without_a_label_out_of_the_weights_gradient():
    hidden = torch.randn(3, 4)
    hidden[1] = float("nan")
    hidden.requires_grad_()
    weight, labels = torch.randn(5, 4, requires_grad=True), torch.tensor([0, -100, 2])
    graph = torch.compile(
        lambda h, w: ak.linear_cross_entropy(h, w, labels, impl="reference"), backend="aot_eager", fullgraph=True
    )
    inputs = (hidden, weight)
    found = torch.autograd.grad(graph(*inputs), inputs)
    eager = torch.autograd.grad(ak.linear_cross_entropy(*inputs, labels, impl="reference"), inputs)
    for one, other in zip(found, eager, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)
