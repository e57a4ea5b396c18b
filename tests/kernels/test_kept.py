"""What an op keeps is the same whatever call came first: in any mode, with any defaults, fake or compiled."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

import afn_kernels as ak
from afn_kernels import _kept
from afn_kernels._kept import CPU, forget, kept
from tests.kernels.cases import CASES
from tests.kernels.harness import assert_same_bits
from tests.kernels.test_every_op import runs


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def all_at_once():
    with torch.inference_mode(), default_dtype(), default_device():
        yield


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default device": default_device,
    "default dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fake tensors": FakeTensorMode,
    "torch.compile": None,
}
INTERPRETED_MODES = {"all at once": all_at_once, "fake tensors": FakeTensorMode}  # a call takes seconds


def first_call(mode: str, call, inputs: dict[str, torch.Tensor], backend: str = "aot_eager"):
    """``call(inputs)`` under a mode; None where it has no values."""
    if mode == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(call, backend=backend)(inputs)
    with (MODES | INTERPRETED_MODES)[mode]() as entered:
        if mode == "fake tensors":
            inputs = {name: entered.from_tensor(x) for name, x in inputs.items()}
            with suppress(DataDependentOutputException, DynamicOutputShapeException):
                call(inputs)
            return None
        return call(inputs)


def wanted(case, impl: str):
    """log_mel has a gradient only by its reference, so its cases ask for none."""
    return replace(case, wrt=("pcm",)) if case.op == "log_mel" and impl == "auto" else case


FIRST = {
    (case.op, impl): wanted(case, impl)
    for case in reversed(CASES)
    for impl in ("auto", *case.impls)  # on a CPU "auto" is mostly the reference
    if case.size
}


@pytest.fixture(autouse=True)
def nothing_kept():
    forget()
    yield
    forget()


@pytest.mark.parametrize(("op", "impl"), sorted(FIRST))
def test_the_first_call_of_an_op_leaves_no_trace(op, impl, device):
    case = FIRST[op, impl]
    if impl != "auto":
        runs(case, impl, device)
    for dtype in (case.dtypes[0], torch.float64) if impl == "auto" else case.dtypes[:1]:
        inputs = case.make(dtype, device, seed=1)
        forget()
        expected, forward = case.evaluate(inputs, impl), replace(case, wrt=()).evaluate(inputs, impl)
        # What AOTAutograd traces a second time is the same in every dtype.
        backend = "aot_eager" if dtype == case.dtypes[0] else "eager"
        for mode in MODES if impl == "auto" else INTERPRETED_MODES:
            forget()
            try:
                outs = first_call(mode, lambda inputs: case.call(inputs, impl), inputs, backend)
                assert_same_bits(case.evaluate(inputs, impl), expected)
                # In inference mode "auto" may take compiled kernels that have other bits.
                inferred = mode in ("inference_mode", "all at once") and op in ("attention", "rms_norm", "rotary")
                if mode in ("inference_mode", "default device", "default dtype", "all at once") and not inferred:
                    assert_same_bits({f"out{i}": out for i, out in enumerate(outs)}, forward)
            except Exception as error:
                raise AssertionError(f"after a first call under {mode}, {dtype}") from error


PCM = 0.1 * torch.randn(2, 3200, generator=torch.Generator().manual_seed(1))


def streamed(inputs: dict) -> torch.Tensor:
    stream = ak.LogMelStream(window_samples=3200)
    (window,) = stream.push(inputs["pcm"][0])
    return window.features


def extracted(inputs: dict) -> torch.Tensor:
    pytest.importorskip("transformers")
    extractor = ak.FeatureExtractor(feature_size=128, chunk_length=1)
    return extractor(list(inputs["pcm"]), sampling_rate=16_000, return_tensors="pt")["input_features"]


class FrontEnd(torch.nn.Module):
    """Samples to rotated, pooled rows: every module that has a table."""

    def __init__(self):
        super().__init__()
        self.ears, self.pool = ak.nn.AudioFrontEnd(), ak.nn.PooledNorm(128)
        self.rote = ak.nn.RotaryTimeEmbedding(rotary_dim=26)

    def forward(self, inputs: dict) -> torch.Tensor:
        x = self.pool(self.ears(inputs["pcm"]).transpose(1, 2))
        time = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return self.rote(x, time // 5, time % 5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["stream", "extractor", "modules"])
def test_what_is_built_on_the_ops(name, mode):
    call = {"stream": streamed, "extractor": extracted, "modules": FrontEnd()}[name]
    inputs = {"pcm": PCM.clone().requires_grad_(name == "modules")}
    plain = {"pcm": PCM}
    expected = call(inputs)
    forget()
    with suppress(*([AssertionError, RuntimeError] if mode == "fake tensors" else [])):  # parameters are real
        first_call(mode, call, plain)
    found = call(inputs)
    assert torch.equal(found, expected)
    if name == "modules":
        assert_same_bits(
            {"dpcm": torch.autograd.grad(found.square().sum(), inputs["pcm"])[0]},
            {"dpcm": torch.autograd.grad(expected.square().sum(), inputs["pcm"])[0]},
        )


@pytest.mark.parametrize("mode", ["inference_mode", "default device", "default dtype"])
def test_a_stream_may_outlive_the_mode_it_was_made_in(mode):
    with MODES[mode]():
        stream = ak.LogMelStream(window_samples=3200)
        assert not stream.push(PCM[0, :1000])
    (window,) = stream.push(PCM[0, 1000:])
    assert torch.equal(window.features, streamed({"pcm": PCM}))


@pytest.mark.parametrize("mode", [*MODES][:5])
def test_how_a_mask_is_packed_in_a_patched_model(mode):
    """The bounds of an even batch and the packing of a mask are kept for all layers, and for the next step."""
    pytest.importorskip("transformers")
    from afn_kernels.patch.attention import PackedBatch

    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    mask[1, :, :, :3] = False

    def out(q, k, v) -> torch.Tensor:
        whole, packed = PackedBatch.even(q, k, True), PackedBatch.of(mask, len(mask), True)
        return torch.stack([layout.run(q, k, v, 0.25, "reference") for layout in (whole, packed)])

    qkv = torch.randn(3, 2, 2, 8, 16)
    with MODES[mode]():
        out(*qkv)
    leaf = qkv.clone().requires_grad_()
    found = out(*leaf)
    found.sum().backward()
    forget()
    mask = mask.clone()
    assert torch.equal(found, out(*qkv))


@pytest.mark.parametrize("mode", ["inference_mode", "default device", "default dtype"])
@pytest.mark.parametrize(("rate", "to"), [(44_100, 16_000), (16_001, 16_000)])
def test_resampling(rate, to, mode):
    from afn_model.audio.resample import resample

    def converted() -> torch.Tensor:
        return torch.cat(list(resample([PCM[0]], rate, to)))

    expected = converted()
    forget()
    with suppress(RuntimeError), MODES[mode]():
        converted()
    found = converted()
    assert torch.equal(found, expected)
    assert not found.is_inference()


@pytest.mark.parametrize("mode", [*MODES][:5])
def test_a_table_is_made_as_if_nothing_had_been_done_before(mode):
    def make(n, device):
        ones = torch.ones(n, dtype=torch.float32)
        return torch.arange(n, device=device) * torch.ones((), dtype=torch.float32), ones @ ones

    table = kept(make)
    with MODES[mode]():
        table(3, torch.device("cpu"))
    values, product = table(3, torch.device("cpu"))
    assert values is table(3, torch.device("cpu"))[0]
    assert not values.is_inference()
    assert (values.device.type, values.dtype, product.dtype) == ("cpu", torch.float32, torch.float32)


def test_fake_tensors_are_not_kept_and_real_ones_stay_out_of_fake_modes():
    table = kept(lambda: torch.ones(3))
    with FakeTensorMode():
        assert table() is not table()
        assert type(table()) is not torch.Tensor
    real = table()
    assert type(real) is torch.Tensor
    with FakeTensorMode():
        assert type(table()) is not torch.Tensor
    assert table() is real
    found = torch.compile(lambda x: x + table(), fullgraph=True, backend="aot_eager")(torch.ones(3))
    assert torch.equal(found, torch.full((3,), 2.0))


def test_the_oldest_table_goes():
    made = []
    table = kept(lambda n: made.append(n) or torch.zeros(n), most=2)
    for n in (1, 2, 1, 3, 2, 1):
        table(n)
    assert made == [1, 2, 3, 1]


def test_threads_that_ask_at_once_get_one_table():
    table, found = kept(lambda: torch.rand(4)), []
    threads = [threading.Thread(target=lambda: found.append(table())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(x is found[0] for x in found)


def makes() -> dict[str, tuple]:
    """Every kept function and what is kept for good, with arguments that reach every tensor it makes."""
    pytest.importorskip("transformers")
    from afn_kernels.istft.triton import unit_inverse
    from afn_kernels.log_mel import fold, tables
    from afn_kernels.log_mel.cpu import any_plan, mel_plan
    from afn_kernels.log_mel.cuda import tables as cuda_tables
    from afn_kernels.pack_heads.cuda import places
    from afn_kernels.patch.attention import _counted
    from afn_kernels.patch.packed_batch import _even_bounds
    from afn_kernels.rotary import _axes
    from afn_kernels.rote.reference import frequencies
    from afn_model.audio.resample import _bank, _phases

    return {
        "mel_plan": (mel_plan.__wrapped__, 80),
        "any_plan": (any_plan.__wrapped__, ak.MelConfig.nemo()),
        "window": (tables.window.__wrapped__, ak.MelConfig.kaldi()),
        "filters": (tables.filters.__wrapped__, ak.MelConfig.kaldi()),
        "mel_filters": (tables.mel_filters.__wrapped__, 128),
        "hann_window": (tables.hann_window.__wrapped__,),
        "constants": (fold.constants.__wrapped__, 80, CPU),
        "tables": (cuda_tables.__wrapped__, 80, True, CPU),
        "places": (places.__wrapped__, (0, 2, 0, 1, 2, 4, 0, 1), 4, 1, CPU),
        "unit_inverse": (unit_inverse.__wrapped__, 32, CPU),
        "_axes": (_axes.__wrapped__, (2, 3, 3), False, CPU),
        "_counted": (_counted.__wrapped__, 5, CPU),
        "_even_bounds": (_even_bounds.__wrapped__, 3, 7, CPU),
        "kept_frequencies": (frequencies, CPU, 26, 10_000.0, torch.float32),
        "_bank": (_bank.__wrapped__, 441, 160),
        "_phases": (_phases.__wrapped__, 16_001, 16_000),
    }


def test_every_kept_function_is_among_the_makes():
    found = set()
    for folder in ("afn_kernels", "afn_model", "distributed"):
        for file in (Path(__file__).parents[2] / folder).rglob("*.py"):
            for names in re.findall(r"^@kept.*\ndef (\w+)|^(\w+) = kept\(", file.read_text(encoding="utf-8"), re.M):
                found.update(filter(None, names))
    assert found == set(makes())


def test_a_make_says_its_dtypes(monkeypatch):
    from afn_kernels import _cpu

    for name in ("MelPlan", "AnyMelPlan"):
        monkeypatch.setattr(_cpu, name, lambda *args: [x for x in args if not isinstance(x, _cpu.MelSettings)])
    for name, (make, *args) in makes().items():
        forget()
        plain = flat(make(*args))
        forget()
        with default_dtype():
            other = flat(make(*args))
        for a, b in zip(plain, other, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def flat(made) -> list:
    return [x for part in made for x in flat(part)] if isinstance(made, (list, tuple)) else [made]


def test_the_default_dtype_is_the_programs(monkeypatch):
    with default_dtype():
        monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: pytest.fail(f"set to {dtype}"))
        assert kept(torch.get_default_dtype)() == torch.float64
        monkeypatch.undo()


AT_EXIT = """
import atexit
import torch
from afn_kernels._kept import kept
atexit.register(lambda: print(kept(lambda: torch.arange(3))().tolist()))
"""


def test_a_table_is_made_while_python_ends():
    ended = subprocess.run([sys.executable, "-c", AT_EXIT], check=True, capture_output=True, text=True)
    assert ended.stdout == "[0, 1, 2]\n", ended.stderr


def test_a_table_is_made_in_place_where_no_thread_can_start(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    table = kept(lambda: torch.arange(3))
    with torch.inference_mode():
        first = table()
    assert table() is first
    assert not first.is_inference()


def test_a_failure_keeps_nothing():
    answers = iter([ValueError("no"), np.array([1.0])])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return torch.from_numpy(answer)

    table = kept(make)
    with pytest.raises(ValueError, match="no"):
        table()
    assert table().item() == 1.0


def test_every_table_is_known_to_forget():
    ak.log_mel(PCM)
    assert any(_kept.TABLES)
    forget()
    assert not any(_kept.TABLES)


def test_a_plan_of_sequence_parallelism():
    from afn_distributed import make_plan

    plan = make_plan([0, 40, 64], ring=2)
    with torch.inference_mode():
        first = plan.exchange(1, 1)
    assert plan.exchange(1, 1) is first
    assert not first.rows.is_inference()


def test_a_table_that_a_capture_comes_before(monkeypatch):
    """A copy from the host breaks a capture, so that is said; what is made on the device belongs to the graph."""
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(_kept, "made_alone", lambda make, device: make())
    make = lambda device, n=0: [device, n]  # noqa: E731
    make.__module__ = "afn_kernels.pack_heads.cuda"
    everything, some, own = kept(make), kept(make, most=1), kept(make, most=1, on_device=True)
    gpu = torch.device("cuda", 0)
    for table in (everything, some):
        with pytest.raises(
            RuntimeError, match=r"^pack_heads is being captured for the first time; call it once before"
        ):
            table(gpu)
    assert own(gpu) is not own(gpu)
    assert not any(_kept.TABLES)
    capturing = False
    before = [table(gpu) for table in (everything, some, own)]
    capturing = True
    assert all(table(gpu) is found for table, found in zip((everything, some, own), before, strict=True))
    capturing = False
    others = some(gpu, 1), some(gpu, 2)
    assert some(gpu) is before[1], "a graph has the address"
    assert some(gpu, 1) is not others[0]


def test_nothing_is_made_alone_within_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="a call that keeps tensors on the GPU is being captured for the first time"):
        _kept.made_alone(lambda: pytest.fail("made"), torch.device("cuda", 0))
