"""What steps make the host wait for, and what is left of an engine that nobody holds."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import afn_kernels as ak
from afn_model.config import AudioConfig, ModelConfig, TextConfig
from afn_model.infer.engine import Engine
from afn_model.infer.runner import LaunchedStep
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.tokens import PromptTokens
from afn_model.network.network import Network
from bench import syncs
from tests.model.infer.test_generate import conversations
from tests.tiny import tiny

AUDIO = AudioConfig(width=32, layers=1, heads=1, ffn=32)
TEXT = TextConfig(vocab_size=64, width=32, layers=1, heads=2, kv_heads=1, ffn=48, max_positions=512)
PARAMS = SamplingParams(
    max_new_tokens=3, stop_token_ids=(), temperature=1.0, top_k=5, repetition_penalty=1.1, seed=0, n=2
)


def asked(model: Network, **options) -> Engine:
    """An engine with two prompts of several chunks."""
    engine = Engine(model, pages=24, slots=4, chunk=64, **options)
    for key, length in enumerate((70, 130)):
        engine.submit(PromptTokens([2 + place % 60 for place in range(length)]), PARAMS, key)
    return engine


class _NoOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} is called")


@pytest.fixture
def model():
    return Network(ModelConfig(audio=AUDIO, text=TEXT, audio_token_id=1)).requires_grad_(False)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_waits_for_no_more_than_its_kernels(model, graphs, monkeypatch):
    """With ``ahead`` the host waits for tokens alone, and reading them asks nothing of the device: that would come
    behind the next step."""
    results, read = LaunchedStep.results, []

    def results_of(self: LaunchedStep) -> list:
        read.append(self)
        with _NoOperations():
            return results(self)

    monkeypatch.setattr(LaunchedStep, "results", results_of)
    monkeypatch.setattr(syncs.OnDevice, "tolist", lambda self: self.values.tolist())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "tensor", syncs.tensor_here)
    with ak.prefer("reference"), torch.no_grad(), syncs.Waits() as waits:
        syncs.to_device(model)
        engine = asked(model, ahead=True, graphs=graphs)
        if engine.runner.graphs is not None:
            engine.runner.graphs.sizes = ()  # what would be captured, called
        while engine.scheduler.running() or engine.pending is not None:
            Engine.step.__wrapped__(engine)  # tensors of the inference mode cannot be wrapped
    assert not [what for what in waits.found if "afn_kernels/" not in what]
    assert waits.found  # of references: it counts
    assert sum(one.drawn is not None for one in read) > 3


@pytest.mark.parametrize("options", [{}, {"graphs": True, "ahead": True}])
def test_an_engine_that_nobody_holds_gives_its_memory_back(model, options):
    """At once: a GPU has no room for the keys and values of a second one."""
    gc.disable()
    try:
        engine = asked(model, **options)
        if engine.runner.graphs is not None:
            engine.runner.graphs.sizes = ()
        engine.run()
        kv = weakref.ref(engine.runner.kv)
        del engine
        assert kv() is None
    finally:
        gc.enable()


def test_whole_prompts_attend_to_themselves_or_to_pages():
    model, processor = tiny()
    params, found = SamplingParams(max_new_tokens=6, stop_token_ids=(), logprobs=0), []
    for fresh in (False, True):
        engine = Engine(model, pages=100)
        engine.runner.fresh = fresh
        requests = engine.add(processor(conversations()), params)
        engine.run()
        found.append([request.answers[0] for request in requests])
    assert [answer.tokens for answer in found[0]] == [answer.tokens for answer in found[1]]
    assert any(a.logprobs != b.logprobs for a, b in zip(*found, strict=True)), "both ways are the same one"
