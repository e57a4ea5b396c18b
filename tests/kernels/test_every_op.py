"""The questions every kernel answers, on the CPU under Triton's interpreter and on a GPU (--device cuda) alike."""

import copy

import pytest
import torch
import torch._dynamo.testing

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels._library import BOUNDARIES, Boundary
from tests.kernels.cases import CASES
from tests.kernels.harness import ALL, LOW, Case, assert_same_bits, check_budget, compare, far_apart, strided, subsets

BY_IMPL = [pytest.param(case, impl, id=f"{case}-{impl}") for case in CASES for impl in case.impls]
FIRST = {(case.op, impl): case for case in reversed(CASES) for impl in case.impls}
FIRST_OF_OP = [pytest.param(case, impl, id=f"{op}-{impl}") for (op, impl), case in sorted(FIRST.items())]
MIXED = [case for case in CASES if case.keep and case.name in ("float32 stream", "float32 parameters", "float32 bias")]
MIXED = list({case.op: case for case in MIXED}.values())  # a stream's comes after that of parameters alone
FAR = [pytest.param(c, i, name, id=f"{c}-{i}-{name}") for c in CASES for i in c.impls for name in c.far]
COMPILED_TOO = (
    "attention-full packed",
    "attention-7:1 heads, hd128",
    "attention-more queries than keys",
    "attention-no sequences",
    "attention-log-sum-exp",
    "attention-carry",
    "attention-window on both sides",
    "attention-softcap",
    "linear_cross_entropy-sum with z-loss",
    "linear_cross_entropy-every row supervised",
    "linear_cross_entropy-no supervision",
    "pool_norm-packed, total unknown",
    "decode_attention-five tokens, pages of 16",
)
COMPILED = [
    *{case.op: case for case in reversed(CASES)}.values(),
    *(case for case in CASES if str(case) in COMPILED_TOO),
]
PACKED = [case for case in CASES if str(case) in ("attention-causal packed", "attention-full packed")]


def runs(case: Case, impl: str, device: torch.device) -> None:
    reason = next(row for row in ak.explain(case.op).rows if row.impl == impl)
    if reason.status == "unavailable":
        pytest.skip(reason.reason)


def dtypes(case: Case, device: torch.device) -> tuple[torch.dtype, ...]:
    return ALL if device.type == "cuda" and set(case.dtypes) == set(LOW) else case.dtypes


@pytest.mark.parametrize(("case", "impl"), BY_IMPL)
def test_within_budget(case, impl, device):
    runs(case, impl, device)
    for dtype in dtypes(case, device):
        check_budget(case, dtype, device, impl)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "impl"), BY_IMPL)
def test_non_contiguous_inputs_and_determinism(case, impl, device):
    runs(case, impl, device)
    case = case.at(min(case.size, 35))
    inputs = case.make(case.dtypes[0], device)
    torch.use_deterministic_algorithms(True)
    try:
        found = case.evaluate(inputs, impl)
        if impl != "triton" or not _triton.interpreted():  # the interpreter has one order, block after block
            assert_same_bits(found, case.evaluate(inputs, impl))
        assert_same_bits(found, case.evaluate({name: strided(x) for name, x in inputs.items()}, impl))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", {case.op: case for case in reversed(CASES)}.values(), ids=str)
def test_explain_takes_any_call(case, device):
    """With the arguments of a call it names what would run; nothing runs."""
    inputs = case.make(case.dtypes[0], device)
    assert ak.explain(case.op, **inputs, **case.options).chosen in {impl.name for impl in ak.OPS[case.op].impls}


@pytest.mark.parametrize(("case", "impl"), FIRST_OF_OP)
def test_a_gradient_nobody_asked_for_is_not_computed(case, impl, device):
    runs(case, impl, device)
    case = case.at(min(case.size, 17))
    inputs = case.make(case.dtypes[0], device)
    everything = case.evaluate(inputs, impl)
    for wanted in subsets(case.wrt):
        some = {name: x.detach().requires_grad_(name in wanted) for name, x in inputs.items()}
        outs = case.call(some, impl)
        sum((out.double() * out.detach().double()).sum() for out in outs if out.requires_grad).backward()
        assert {name for name, x in some.items() if x.grad is not None} == set(wanted)
    for name in case.wrt:
        assert f"d{name}" in everything
    frozen = case.call({name: x.detach() for name, x in inputs.items()}, impl)
    assert not any(out.requires_grad for out in frozen)


# Traced with dynamic sizes it is in the tests below.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "impl"), [*FIRST_OF_OP, *(pytest.param(case, "triton", id=str(case)) for case in MIXED)]
)
def test_opcheck(case, impl, device, monkeypatch):
    """Schemas, fakes and autograd of every registered op that the case goes through, forward and backward."""
    runs(case, impl, device)
    seen = {}
    call = Boundary.__call__

    def record(self, *args):
        seen.setdefault(self.name, args)
        return call(self, *args)

    monkeypatch.setattr(Boundary, "__call__", record)
    case.evaluate(case.make(case.dtypes[0], device), impl)
    monkeypatch.undo()
    assert seen, "no registered op was called"
    for name, args in seen.items():
        torch.library.opcheck(BOUNDARIES[name].op, tuple(_leaf(x) for x in args), test_utils=CHECKS)


def _leaf(x):
    return x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x


@pytest.mark.slow
@pytest.mark.parametrize(("case", "impl"), FIRST_OF_OP)
def test_torch_compile_sees_one_graph_for_every_length(case, impl, device):
    runs(case, impl, device)
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda inputs: case.call(inputs, impl), fullgraph=True, dynamic=True, backend=graphs)
    counts = []
    in_a_graph = copy.copy(case)
    object.__setattr__(in_a_graph, "call", lambda inputs, impl: compiled(inputs))
    first = min(case.size, 19)
    for size in (first, first + 8, first + 17):
        inputs = case.at(size).make(case.dtypes[0], device)
        found = in_a_graph.evaluate(inputs, impl)
        counts.append(graphs.frame_count)
    assert_same_bits(found, case.evaluate(inputs, impl))
    assert counts[0] == counts[-1]


def test_the_cases_to_compile_are_there():
    assert len(COMPILED) == len({case.op for case in CASES}) + len(COMPILED_TOO)
    assert len(PACKED) == 2
    norms = {"layer_norm", "rms_norm", "pool_norm", "bias_gelu"}
    assert {case.op for case in MIXED} == {*norms, "linear_cross_entropy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "impl"),
    [*((case, "auto") for case in COMPILED), *((case, impl) for case in PACKED for impl in ("matmul", "reference"))],
    ids=lambda x: str(x),
)
def test_auto_is_one_graph_with_the_results_of_eager(case, impl, device):
    """As nobody names it: packed or not, on a CPU too, where attention loops over sequences."""
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda inputs: case.call(inputs, impl), fullgraph=True, dynamic=True, backend=graphs)
    in_a_graph, counts = copy.copy(case), []
    object.__setattr__(in_a_graph, "call", lambda inputs, impl: compiled(inputs))
    for size in (case.size, case.size + 8, case.size + 17):
        inputs = case.at(size).make(case.dtypes[0], device)
        found = in_a_graph.evaluate(inputs, impl)
        counts.append(graphs.frame_count)
    compare(case.at(size), inputs, found, case.dtypes[0], device)
    assert counts[-1] == counts[0], counts


@pytest.mark.parametrize(("case", "impl", "name"), FAR)
def test_offsets_beyond_two_to_the_31(case, impl, name, device):
    runs(case, impl, device)
    dtype = next((x for x in case.dtypes if x.itemsize == 2), case.dtypes[0])
    near = case.at(max(case.size, 3)).make(dtype, device)
    far = {**near, name: far_apart(near[name])}
    with torch.no_grad():
        for a, b in zip(case.call(far, impl), case.call(near, impl), strict=True):
            assert torch.equal(a, b)


def test_tensors_on_different_devices_are_refused():
    here, elsewhere = torch.zeros(1), torch.zeros(1, device="meta")
    assert "cpu and meta" in _triton.supports(here, None, elsewhere)
