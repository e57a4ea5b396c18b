"""Norms, activations, pooling and splicing against their formulas, in forward and backward."""

import math
from functools import partial

import pytest
import torch

import afn_kernels as ak
from afn_kernels.swiglu.boundary import FORWARD as SWIGLU
from tests.budget import assert_same_but_rounding, assert_within_budget, gradients, lost
from tests.orders import in_orders


def layer_norm(x, w, b):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w + b


def rms_norm(x, w):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w


def pool_norm(x, w, b):
    even = x[: len(x) // 2 * 2]
    return layer_norm((even[0::2] + even[1::2]) / 2, w, b)


def gelu(u):
    return u / 2 * (1 + torch.erf(u / math.sqrt(2)))


def gelu_tanh(u):
    return u / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


# op, the formula, and the shapes of its arguments for `rows` rows
OPS = {
    "layer_norm": (ak.layer_norm, layer_norm, lambda rows: [(rows, 48), (48,), (48,)]),
    "rms_norm": (ak.rms_norm, rms_norm, lambda rows: [(rows, 48), (48,)]),
    "swiglu": (ak.swiglu, lambda g, u: g / (1 + (-g).exp()) * u, lambda rows: [(rows, 40), (rows, 40)]),
    "bias_gelu": (ak.bias_gelu, lambda x, b: gelu(x + b), lambda rows: [(rows, 40), (40,)]),
    "geglu": (ak.geglu, lambda g, u: gelu(g) * u, lambda rows: [(rows, 40), (rows, 40)]),
    "pool_norm": (ak.pool_norm, pool_norm, lambda rows: [(rows, 48), (48,), (48,)]),
}


def cu(*boundaries):
    return torch.tensor(boundaries, dtype=torch.int32)


def evaluate(function, inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *gradients(out, inputs)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", [1, 2, 63, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formula(op, rows, dtype, device):
    function, formula, shapes = OPS[op]

    def draw():
        """Inputs, the formula of them in float64, and in their own precision in several orders."""
        inputs = [torch.randn(shape).to(device, dtype) for shape in shapes(rows)]
        return inputs, evaluate(formula, [x.double() for x in inputs]), in_orders(lambda: evaluate(formula, inputs), 4)

    inputs, oracle, same = draw()
    others = [draw()[1:] for _ in range(12 if rows < 1000 else 6)]
    for i, (f, o, *s) in enumerate(zip(evaluate(function, inputs), oracle, *same, strict=True)):
        assert f.dtype == dtype
        # Normalised values have a mean square of 1, the direction one of 1/3.
        sums = {"summed": rows, "rms": 3**-0.5} if f.dim() == 1 else {}
        elsewhere = [one for exact, more in others for one in lost([x[i] for x in more], exact[i])]
        # Another library's exp and erf: a unit in the last place each, of what is multiplied on.
        ulps = 3 if op in ("swiglu", "bias_gelu", "geglu") else 1
        assert_within_budget(f, s, o, ulps=ulps, elsewhere=elsewhere, **sums)


@pytest.mark.parametrize("op", OPS)
def test_non_contiguous_and_batched(op):
    function, _, shapes = OPS[op]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes(6)]
    strided = [x.repeat_interleave(2, -1)[..., ::2] for x in inputs]
    assert_same_but_rounding(function(*strided), in_orders(lambda: function(*inputs)))
    batched = [x[None].expand(3, *x.shape) if x.dim() == 2 else x for x in inputs]
    assert_same_but_rounding(function(*batched)[1], in_orders(lambda: function(*inputs)))


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_nobody_asked_for_is_not_computed(op):
    function, _, shapes = OPS[op]
    for wanted in range(len(shapes(4))):
        inputs = [torch.randn(shape, requires_grad=i == wanted) for i, shape in enumerate(shapes(4))]
        function(*inputs).sum().backward()
        assert [x.grad is not None for x in inputs] == [i == wanted for i in range(len(inputs))]


@pytest.mark.parametrize("lengths", [[4], [5, 1, 0, 6, 3], [1], [0, 0], []])
def test_pool_norm_of_packed_sequences_is_a_loop(lengths):
    w, b = torch.randn(2, 8, dtype=torch.float64)
    parts = [torch.randn(n, 8, dtype=torch.float64) for n in lengths]
    x = torch.cat([torch.empty(0, 8, dtype=torch.float64), *parts]).requires_grad_()
    cu = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)
    found = ak.pool_norm(x, w, b, cu_seqlens=cu)
    assert_same_but_rounding(
        found, in_orders(lambda: torch.cat([x[:0, :], *(pool_norm(part, w, b) for part in parts)]))
    )


def test_pool_norm_with_a_total_that_only_a_gpu_would_accept(device):
    """It is taken on trust where lengths cannot be read for free: memory stays safe, and what is not there is NaN."""
    forward = pytest.importorskip("afn_kernels.pool_norm.triton").forward
    x, (w, b) = torch.randn(9, 8, device=device), torch.randn(2, 8, device=device)
    cu = torch.tensor([0, 5, 9], dtype=torch.int32, device=device)
    exact = forward(x, w, b, cu, 0, 4, 1e-5)[0]
    same = in_orders(lambda: ak.pool_norm(x, w, b, cu_seqlens=cu, impl="reference"))
    assert_within_budget(exact, same, ak.pool_norm(x.double(), w.double(), b.double(), cu_seqlens=cu))
    more = forward(x, w, b, cu, 0, 6, 1e-5)[0]
    assert torch.equal(more[:4], exact)
    assert more[4:].isnan().all()
    assert torch.equal(forward(x, w, b, cu, 0, 3, 1e-5)[0], exact[:3])


def turned_pool_norm(cu=None, x=None, impl="auto", **rote):
    index = {"window": torch.tensor([59, 1]), "frame": torch.tensor([749, 17])}
    x = torch.ones(5, 4) if x is None else x
    return ak.pool_norm(x, *torch.ones(2, x.shape[1]).to(x), cu_seqlens=cu, rote=index | rote, impl=impl)


def test_turned_pool_norm_is_the_two_ops_in_a_row():
    x = torch.randn(5, 20, dtype=torch.float64, requires_grad=True)
    pooled = ak.pool_norm(x, *torch.ones(2, 20, dtype=torch.float64))
    assert torch.equal(turned_pool_norm(x=x), ak.rote(pooled, torch.tensor([59, 1]), torch.tensor([749, 17])))
    assert torch.autograd.gradcheck(lambda x: turned_pool_norm(x=x, phase_dtype=torch.float64), (x,))


def test_torch_compile_sees_one_graph_of_turned_pool_norm(device):
    pytest.importorskip("triton")
    window, frame = torch.tensor([59, 1], device=device), torch.tensor([749, 17], device=device)
    x = torch.randn(5, 20, device=device, requires_grad=True)

    def call(x, window, frame):
        return turned_pool_norm(x=x, window=window, frame=frame, impl="triton").sin()

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(*(torch.autograd.grad(f(x, window, frame).sum(), x)[0] for f in (call, compiled)))


def test_halves_of_one_projection_are_not_copied(device, monkeypatch):
    triton = pytest.importorskip("afn_kernels.swiglu.triton")
    fused = torch.randn(5, 80, device=device)
    seen = []
    forward = triton.forward
    monkeypatch.setattr(SWIGLU, "_launch", lambda *args: seen.extend(args) or forward(*args))
    gate, up = fused.chunk(2, -1)
    found, same = (ak.swiglu(gate, up, impl=impl) for impl in ("triton", "reference"))
    assert_within_budget(found, [same], ak.swiglu(gate.double(), up.double(), impl="reference"))
    assert [x.data_ptr() for x in seen] == [gate.data_ptr(), up.data_ptr()]


def test_the_old_name_of_merge_embeddings_still_works():
    tokens, audio, rows = torch.zeros(3, 2), torch.ones(1, 2), torch.tensor([1])
    with pytest.warns(DeprecationWarning, match="merge_embeddings"):
        old = ak.splice(tokens, audio, rows)
    assert torch.equal(old, ak.merge_embeddings(tokens, audio, rows))
    assert ak.explain("splice", tokens, audio, rows) == ak.explain("merge_embeddings", tokens, audio, rows)


def test_merge_embeddings_is_out_of_place_and_differentiable():
    tokens = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    audio = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 1])
    before = tokens.detach().clone()
    out = ak.merge_embeddings(tokens, audio, rows)
    assert torch.equal(tokens, before)
    assert torch.equal(out[rows], audio)
    assert torch.equal(out[[0, 2, 3, 5]], tokens[[0, 2, 3, 5]])
    assert torch.autograd.gradcheck(lambda t, a: ak.merge_embeddings(t, a, rows), (tokens, audio))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ak.layer_norm(torch.zeros(2, 4), torch.zeros(3), torch.zeros(4)), r"weight has shape \(3,\)"),
        (lambda: ak.rms_norm(torch.zeros(2, 4), torch.zeros(4).double()), "float64"),
        (lambda: ak.swiglu(torch.zeros(2, 4), torch.zeros(2, 5)), r"\(2, 5\)"),
        (lambda: ak.merge_embeddings(torch.zeros(2, 4), torch.zeros(1, 4), torch.tensor([True, False])), "nonzero"),
        (lambda: ak.merge_embeddings(torch.zeros(2, 4), torch.zeros(1, 4), torch.tensor([1]).int()), "int32.*int64"),
        (lambda: ak.bias_gelu(torch.zeros(2, 4, dtype=torch.int32), torch.zeros(4)), "int32"),
        (
            lambda: ak.bias_gelu(torch.zeros(2, 4), torch.zeros(4), approximate="fast"),
            "'fast', expected 'none' or 'tanh'",
        ),
        (lambda: ak.geglu(*torch.zeros(2, 2, 4), approximate=True), "approximate is True"),
        (lambda: ak.geglu(torch.zeros(2, 4), torch.zeros(2, 4).half()), "up is torch.float16 .*; cast or move one"),
        (lambda: ak.rms_norm(torch.zeros(2, 4), torch.zeros(4).bfloat16()), "expected torch.float32 on cpu"),
        (lambda: ak.rms_norm(torch.zeros(2, 4), offset=1.0), "offset is 1.0, but there is no weight"),
        (lambda: ak.layer_norm(torch.zeros(2, 4).half(), bias=torch.zeros(4).bfloat16()), "float16 or torch.float32"),
        (lambda: ak.pool_norm(torch.zeros(2, 4), None, torch.zeros(4)), "weight is a NoneType"),
        (lambda: ak.pool_norm(torch.zeros(2, 3, 4), *torch.zeros(2, 4), cu_seqlens=torch.tensor([0])), "packed"),
        (lambda: ak.pool_norm(torch.zeros(5, 4), *torch.zeros(2, 4), cu_seqlens=cu(0, 2, 5), total=1), "make 2 rows"),
        (lambda: ak.pool_norm(torch.zeros(5, 4), *torch.zeros(2, 4), cu_seqlens=cu(0, 2, 5), total=3), "0 to 2 rows"),
        (lambda: ak.pool_norm(torch.zeros(5, 4), *torch.zeros(2, 4), total=2), "no cu_seqlens"),
        (lambda: turned_pool_norm(frame=torch.zeros(3)), r"frame must be integer \[2\], got torch.float32 \(3,\)"),
        (lambda: turned_pool_norm(rotary_dim=3), "rotary_dim 3 do not fit 4"),
        (lambda: turned_pool_norm(thata=1.0), "thata"),
        (lambda: ak.pool_norm(torch.zeros(5, 4), *torch.zeros(2, 4), rote={"thata": 1}), r"\['window', 'frame'\]"),
        (lambda: turned_pool_norm(cu(0, 2, 5), window=torch.zeros(3, dtype=torch.int32)), "3, but 5 frames"),
        (lambda: ak.layer_norm(torch.zeros(2, 4), *torch.zeros(2, 4), residual=torch.zeros(4)), r"residual is \(4,\)"),
        (lambda: ak.merge_embeddings(torch.zeros(3, 2), torch.zeros(1, 2), torch.tensor([3])), "rows span 3..3"),
        (
            lambda: ak.merge_embeddings(torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0])),
            "rows \\(1,\\) do not fit",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["Gemma2", "Gemma3"])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_rms_norm_with_an_offset_is_gemmas(name, dtypes, device):
    models = pytest.importorskip(f"transformers.models.{name.lower()}.modeling_{name.lower()}")
    dtype, wide = dtypes
    norm = getattr(models, f"{name}RMSNorm")(48).to(device, wide)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(9, 48).to(device, dtype)

    def run(function, dtype=None):
        given, weight = (t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, norm.weight))
        y = function(given, weight)
        return [y.detach(), *gradients(y, (given, weight))]

    def theirs(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, x)

    def ours(x, weight):
        return ak.rms_norm(x, weight, eps=norm.eps, offset=1.0)

    oracle, same = run(ours, torch.float64), in_orders(lambda: run(theirs))
    for found, exact, *others in zip(run(ours), oracle, *same, strict=True):
        assert found.dtype == others[0].dtype
        assert_within_budget(found, others, exact, summed=0 if found.dim() > 1 else 9, rms=3**-0.5)


def test_rows_without_elements_are_the_references():
    x, weight = torch.zeros(2, 3, 0), torch.zeros(0)
    for call in (partial(ak.rms_norm, x, weight), partial(ak.layer_norm, x, weight, weight)):
        assert call(impl="reference").shape == (2, 3, 0)
        with pytest.raises(ValueError, match="its rows have no elements"):
            call(impl="triton")
