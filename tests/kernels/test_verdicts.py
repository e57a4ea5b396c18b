"""What ``impl="auto"`` makes of findings and of failures: order, kinds and sizes of calls, files, what is aside."""

import json
import multiprocessing
import re
import sys
import threading
import warnings

import pytest
import torch
import torch.utils.checkpoint

import afn_kernels as ak
from afn_kernels import _cuda, _library, _verdicts
from afn_kernels._registry import OPS, Impl
from tests.kernels.verify import planted
from tests.kernels.verify.planted import HERE

CPU = torch.device("cpu")
X, W = torch.randn(4, 8), torch.ones(8)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache that counts, and a process that has seen nothing."""
    monkeypatch.setenv("AFN_CACHE", str(tmp_path))
    monkeypatch.setenv("AFN_VERDICTS", "1")
    _verdicts.forget()
    yield tmp_path / "verdicts"
    _verdicts.forget()


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def failed(impl: str, op: str = "rms_norm", check: str = "a check") -> dict:
    return {"op": op, "impl": impl, "check": check, "size": "toy", "status": "failed", "reason": "too far"}


def timed(op: str = "rms_norm", what: str = "float32 forward", octave: int = 6, **seconds: float) -> dict:
    common = {"op": op, "impl": "", "check": what, "size": "toy", "status": "timed"}
    return common | {"seconds": {what: seconds}, "octave": octave}


def chosen(*args, **kwargs) -> str | None:
    return ak.explain("rms_norm", *(args or (X, W)), **kwargs).chosen


def test_what_failed_is_never_chosen_and_said_once(kept):
    with planted.planted("good", "a_bit_off"):
        assert chosen() == "good"
        _verdicts.keep(CPU, [failed("good")])
        with pytest.warns(UserWarning, match=r"rms_norm: impl='auto' leaves good aside .*\(a check: too far\)"):
            ak.rms_norm(X, W)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ak.rms_norm(X, W)
        rows = {row.impl: row for row in ak.explain("rms_norm", X, W).rows}
        assert (rows["good"].status, rows["good"].reason) == ("failed", "a check: too far")
        assert rows["a_bit_off"].status == "chosen"
        assert ak.explain("rms_norm").chosen == "a_bit_off"
        assert torch.equal(ak.rms_norm(X, W, impl="good"), ak.rms_norm(X, W, impl="reference"))  # a name is a name


def test_the_last_resort_is_always_there(kept, quiet):
    _verdicts.keep(CPU, [failed("reference")])
    assert chosen() == "reference"
    ak.rms_norm(X, W)


def test_what_was_faster_comes_first_at_its_size_and_kind(kept, quiet):
    with planted.planted("good", "a_bit_off"):
        _verdicts.keep(CPU, [timed(good=2.0, a_bit_off=1.0, reference=3.0)])
        assert chosen() == "a_bit_off"
        assert "1e+03 ms measured here" in str(ak.explain("rms_norm", X, W))
        assert not torch.equal(ak.rms_norm(X, W), ak.rms_norm(X, W, impl="reference"))
        assert chosen(torch.randn(4, 16), torch.ones(16)) == "a_bit_off"  # twice the size
        assert chosen(torch.randn(64, 8), W) == "good"  # sixteen times
        assert chosen(X.double(), W.double()) == "good"
        assert chosen(X.clone().requires_grad_(), W) == "good"
        with torch.no_grad():
            assert chosen(X.clone().requires_grad_(), W) == "a_bit_off"


def test_a_size_between_two_that_were_measured_in_other_implementations(kept, quiet):
    """The smaller of both counts, and is what an explanation shows."""
    with planted.planted("good", "a_bit_off"):
        for rows in ([timed(octave=8, a_bit_off=1.0)], [timed(octave=4, good=2.0) | {"check": "another"}]):
            _verdicts.keep(CPU, rows)
        assert _verdicts.octave("rms_norm", (X,)) == 6
        found = ak.explain("rms_norm", X, W)
        assert found.chosen == "good"
        assert "2e+03 ms measured here" in str(found)


def test_times_too_near_to_tell_apart_change_nothing(kept, quiet):
    with planted.planted("good", "a_bit_off"):
        _verdicts.keep(CPU, [timed(good=1.02, a_bit_off=1.0)])
        assert chosen() == "good"


def test_a_measurement_overrules_what_is_avoided_for_want_of_one(kept, quiet, monkeypatch):
    op = OPS["rms_norm"]
    shy = Impl("good", f"{HERE}:good", avoid=lambda *_, **__: "not timed")
    monkeypatch.setattr(op, "impls", (shy, op.impls[-1]))
    monkeypatch.setattr(op, "_by_name", {row.name: row for row in op.impls})
    assert chosen() == "reference"
    _verdicts.keep(CPU, [timed(good=1.0, reference=2.0)])
    assert chosen() == "good"
    planted.calls["n"] = 0
    ak.rms_norm(X, W)
    assert planted.calls["n"] == 1


def test_kinds_of_attention(kept, quiet):
    q = torch.randn(24, 2, 16)
    packed = {"cu_seqlens_q": torch.tensor([0, 9, 24], dtype=torch.int32)}
    octave = _verdicts.octave("attention", (q,))
    what = "float32 forward 16 one causal"
    _verdicts.keep(CPU, [timed("attention", what, octave, matmul=1.0, sdpa=2.0)])
    assert ak.explain("attention", q, q, q, causal=True).chosen == "matmul"
    assert ak.explain("attention", q, q, q).chosen == "sdpa"
    assert ak.explain("attention", q, q, q, causal=True, **packed).chosen == "sdpa"
    assert ak.explain("attention", *[q[..., :8]] * 3, causal=True).chosen == "sdpa"


def test_another_key_is_another_file(kept, quiet, monkeypatch):
    file = _verdicts.keep(CPU, [timed(reference=1.0)])
    assert _verdicts.of(-1) is not None
    before = _verdicts.key(CPU)
    assert list(before) == ["device", "driver", "torch", "triton", "library"]
    assert all(before.values())
    for name in before:
        with monkeypatch.context() as other:
            other.setattr(_verdicts, "key", lambda device, n=name, b=before: b | {n: "another"})
            _verdicts.forget()
            assert _verdicts.of(-1) is None
            # Nor does a file that somebody has renamed count.
            _verdicts.path(CPU).write_text(file.read_text())
            _verdicts.forget()
            assert _verdicts.of(-1) is None
    _verdicts.forget()
    assert _verdicts.of(-1) is not None


def test_the_library_is_part_of_the_key(tmp_path, monkeypatch):
    (tmp_path / "afn_kernels").mkdir()
    source = tmp_path / "afn_kernels" / "_verdicts.py"
    hashes = set()
    for text in ("a = 1", "a = 2"):
        source.write_text(text)
        monkeypatch.setattr(_verdicts, "__file__", str(source))
        hashes.add(_verdicts.library.__wrapped__())
        (source.parent / ".#_verdicts.py").unlink(missing_ok=True)
        (source.parent / ".#_verdicts.py").symlink_to("somebody@somewhere.1234")  # as of an editor
        hashes.add(_verdicts.library.__wrapped__())
    assert len(hashes) == 2


WRONG_ROWS = [
    timed(good=float("nan")),
    timed(good=-1.0),
    timed(good=0.0),
    timed(octave=float("inf"), good=1.0),
    timed(octave=10**9, good=1.0),
    failed("good") | {"size": ["toy"]},
]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 0, "rows": []}',
                                  '{"format": 1, "rows": [{"op": "rms_norm", "status": "failed"}]}',
                                  b'{"\xff": 1}', "[" * 100_000, *WRONG_ROWS])  # fmt: skip
def test_a_broken_file_is_ignored_with_one_warning(kept, text):
    file = _verdicts.keep(CPU, [failed("good")])
    if isinstance(text, dict):
        text = json.dumps(json.loads(file.read_text()) | {"rows": [failed("good"), text]})
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(UserWarning, match=rf"{re.escape(str(file))} cannot be used"):
        ak.rms_norm(X, W)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ak.swiglu(X, X)
    _verdicts.keep(CPU, [failed("good")])
    assert _verdicts.of(-1).failed == {"rms_norm": {"good": "a check: too far"}}


def test_without_a_home_nothing_is_read_or_kept(kept, quiet, monkeypatch, capsys):
    for name in ("AFN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(RuntimeError):
        type(kept).home()
    _verdicts.forget()
    ak.rms_norm(X, W)
    assert _verdicts.read(CPU) == []
    _cuda.keep(_cuda.cache() / "a.cubin", b"code")
    assert "cannot keep the compiled kernel" in capsys.readouterr().err
    keep = sys.modules["afn_kernels.verify"].keep
    assert not keep(CPU, [timed(good=1.0)])
    assert "AFN_CACHE names another folder" in capsys.readouterr().err


def test_a_later_run_replaces_what_it_has_checked_again(kept, quiet):
    _verdicts.keep(CPU, [failed("good"), failed("other", check="another")])
    _verdicts.keep(CPU, [failed("good") | {"status": "ok", "reason": ""}, timed(good=1.0)])
    assert _verdicts.of(-1).failed == {"rms_norm": {"other": "another: too far"}}
    assert _verdicts.of(-1).order["rms_norm"]["float32 forward"][6] == ("good",)


def write(number: int, begin) -> None:
    begin.wait()
    for i in range(20):
        _verdicts.keep(CPU, [failed(f"{number} {i}")])


def test_two_processes_that_write_at_once(kept, quiet):
    _verdicts.library()
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(2)
    writers = [context.Process(target=write, args=(number, begin)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    names = {row["impl"] for row in _verdicts.read(CPU)}
    assert names == {f"{number} {i}" for number in range(2) for i in range(20)}
    assert [file.suffix for file in sorted(kept.iterdir())] == [".json", ".lock"]
    assert json.loads(_verdicts.path(CPU).read_text())["key"] == _verdicts.key(CPU)


def test_without_a_file_nothing_is_read(kept, quiet, monkeypatch):
    monkeypatch.setattr(_verdicts, "key", None)
    ak.rms_norm(X, W)
    monkeypatch.setenv("AFN_VERDICTS", "0")
    kept.mkdir()
    (kept / "a.json").write_text("{")
    _verdicts.forget()
    ak.rms_norm(X, W)


def test_threads_read_it_once(kept, monkeypatch):
    reads = []
    monkeypatch.setattr(_verdicts, "_load", lambda index: reads.append(index))
    threads = [threading.Thread(target=ak.rms_norm, args=(X, W)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [-1]


# Implementations that fail when they are launched.


@pytest.fixture
def fresh(kept):
    """Nothing failed before in this process."""
    planted.calls["n"] = 0


def test_a_failure_at_a_launch_is_set_aside_with_one_warning(fresh):
    expected = ak.rms_norm(X, W, impl="reference")
    with planted.planted("raising", "good"):
        what = r"rms_norm: raising failed at its launch .*\(RuntimeError: out of resource: shared memory\)"
        with pytest.warns(UserWarning, match=what + "; good runs instead"):
            found = ak.rms_norm(X, W)
        assert torch.equal(found, expected)
        assert planted.calls["n"] == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ak.rms_norm(X, W)
        assert planted.calls["n"] == 3  # it is not tried again
        row = ak.explain("rms_norm", X, W).rows[0]
        assert (row.status, row.reason) == ("set aside", "RuntimeError: out of resource: shared memory")
        assert ak.explain("rms_norm").chosen == "good"
        with pytest.raises(RuntimeError, match="out of resource"):
            ak.rms_norm(X, W, impl="raising")
        with pytest.raises(RuntimeError, match="out of resource"), ak.prefer("raising"):
            ak.rms_norm(X, W)


def test_other_widths_are_tried_by_themselves(fresh):
    with planted.planted("raising", "good"):
        with pytest.warns(UserWarning, match="set aside"):
            ak.rms_norm(X, W)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ak.rms_norm(X[:, :4], W[:4])
        assert planted.calls["n"] == 4


def test_strict_and_deterministic_runs_raise(fresh):
    with planted.planted("raising", "good"):
        with pytest.raises(RuntimeError, match="out of resource"), ak.strict():
            ak.rms_norm(X, W)
        torch.use_deterministic_algorithms(True)
        try:
            with pytest.raises(RuntimeError, match="out of resource"):
                ak.rms_norm(X, W)
        finally:
            torch.use_deterministic_algorithms(False)
        assert not _verdicts.ASIDE


class Preempted(Exception):
    pass


ERRORS = {
    "value": ValueError("weight is wrong"),
    "memory": torch.OutOfMemoryError("CUDA out of memory"),
    "driver": RuntimeError("Triton Error [CUDA]: out of memory"),
    "memory of the CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    "memory of a library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "memory of Python": MemoryError("none left"),
    "derivative": NotImplementedError("no forward-mode derivative"),
    "alarm": TimeoutError("10 s are over"),
    "handler": Preempted("the node goes"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_not_the_implementations_fault_propagates(fresh, quiet, name, monkeypatch):
    error = ERRORS[name]

    def raise_it(*_, **__):
        raise error

    monkeypatch.setattr(planted, "out_of_resource", raise_it)
    monkeypatch.setitem(vars(planted.launch("out_of_resource")), "_launch", raise_it)
    with planted.planted("raising"), pytest.raises(type(error), match=re.escape(str(error))):
        ak.rms_norm(X, W)
    assert not _verdicts.ASIDE


def test_what_raises_around_a_launch_is_no_fault(fresh, quiet, monkeypatch):
    """Plain PyTorch has no launch, a hook of saved tensors is the caller's, and so is a graph that is gone."""
    monkeypatch.setattr(planted, "good", fails)
    monkeypatch.setattr("afn_kernels._registry._LOADED", type(warnings)("loaded"))
    with planted.planted("good"), pytest.raises(RuntimeError, match="invalid"):
        ak.rms_norm(X, W)

    def hook(_):
        raise RuntimeError("CUDA error: invalid argument")

    x = X.clone().requires_grad_()
    with planted.planted("launched"):
        with pytest.raises(RuntimeError, match="invalid"), torch.autograd.graph.saved_tensors_hooks(hook, hook):
            ak.rms_norm(x, W)
        y = ak.rms_norm(x, W).sum()
        y.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.backward()
    assert not _verdicts.ASIDE


@pytest.mark.parametrize("early_stop", [True, False])
def test_checkpointed_activations(fresh, quiet, early_stop):
    """The recomputation ends in a hook of saved tensors, by an exception of PyTorch's."""
    q = torch.randn(8, 2, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(ak.attention(q, q, q).square().sum(), q)
    with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
        again = torch.utils.checkpoint.checkpoint(lambda q: ak.attention(q, q, q), q, use_reentrant=False)
        assert torch.equal(torch.autograd.grad(again.square().sum(), q)[0], expected)
        with planted.planted("launched"):
            again = torch.utils.checkpoint.checkpoint(ak.rms_norm, q, torch.ones(16), use_reentrant=False)
            torch.autograd.grad(again.sum(), q)
    assert not _verdicts.ASIDE


def test_a_handler_that_raises_while_triton_compiles():
    """Triton puts what was raised into an error of its own."""
    compiler = type("CompilationError", (Exception,), {"__module__": "triton.compiler.errors"})
    for cause, fault in ((TypeError("no such type"), True), (TimeoutError(), False), (Preempted(), False)):
        error = compiler("at 3:4")
        error.__cause__ = cause
        assert _verdicts.is_fault(error) is fault


def test_where_everything_fails_nothing_is_set_aside(fresh, quiet, monkeypatch):
    """The call is at fault then, and its own error is what comes out."""
    op = OPS["rms_norm"]
    with planted.planted("raising"):
        op.impls = (op.impls[0], Impl("reference", f"{HERE}:raising_too"))
        monkeypatch.setattr(planted, "raising_too", planted.raising, raising=False)
        with pytest.raises(RuntimeError, match="out of resource"):
            ak.rms_norm(X, W)
    assert not any(calls for impls in _verdicts.ASIDE.values() for calls in impls.values())


@pytest.mark.slow
def test_a_graph_takes_what_is_known_when_it_is_traced(fresh):
    _verdicts.keep(CPU, [failed("a_bit_off")])
    expected = ak.rms_norm(X, W, impl="reference")
    with planted.planted("raising", "a_bit_off", "good"):
        with pytest.warns(UserWarning, match="raising failed at its launch|leaves a_bit_off aside"):
            ak.rms_norm(X, W)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, w: ak.rms_norm(x, w), backend="eager", fullgraph=True, dynamic=True)
        assert torch.equal(compiled(X, W), expected)
        x = torch.randn(7, 8)
        assert torch.equal(compiled(x, W), ak.rms_norm(x, W, impl="reference"))
    torch._dynamo.reset()


def fails(*_, **__):
    raise RuntimeError("CUDA error: invalid argument")


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


BOUNDARY = _library.Boundary(
    "test_fails_backward(Tensor x) -> Tensor",
    f"{__name__}:doubled",
    lambda x: torch.empty_like(x),
    backward=lambda ctx, grad: IN_GRAPH(grad),
)
IN_GRAPH = _library.Boundary("test_fails_in_graph(Tensor x) -> Tensor", f"{__name__}:fails", torch.empty_like)


@pytest.mark.parametrize("run", ["eager", "registered", "graph"])
def test_a_failure_in_a_backward_or_a_graph_raises_and_is_set_aside(fresh, run, monkeypatch):
    """As of a kernel: its target's folder and file are the op's and the implementation's."""
    if run == "graph":
        assert IN_GRAPH._launch is fails
        monkeypatch.setattr(IN_GRAPH, "_target", "afn_kernels.rms_norm.good:forward")
        call = lambda: IN_GRAPH.op(X)  # noqa: E731
    else:
        target = "afn_kernels.rms_norm.good:forward"
        monkeypatch.setattr(
            _verdicts, "failed_in_launch", lambda _, error, f=_verdicts.failed_in_launch: f(target, error)
        )
        x = X.clone().requires_grad_()
        call = (BOUNDARY if run == "eager" else BOUNDARY.op)(x).sum().backward
    with planted.planted("good"):
        assert chosen() == "good"
        with (
            pytest.raises(RuntimeError, match="invalid argument"),
            pytest.warns(UserWarning, match="when the step is run again"),
        ):
            call()
        assert chosen() == "reference"
        assert "set aside" in str(ak.explain("rms_norm", X, W))
