"""A stranger's audio-language model (examples/audio_language_model.py) is trained in every way that people train."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from tests.budget import assert_same_but_rounding
from tests.distributed.ranks import run
from tests.orders import in_orders

FILE = Path(__file__).parents[2] / "examples" / "audio_language_model.py"
pytestmark = pytest.mark.slow


def example():
    spec = importlib.util.spec_from_file_location("audio_language_model", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fell(losses: list[float], to: float = 0.5) -> bool:
    """The mean of the last five against the first: to half of it in fifty steps."""
    return sum(losses[-5:]) / 5 < to * losses[0]


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"autocast": True}], ids=["float32", "bf16", "amp"])
def test_eager(options, capsys):
    assert fell(example().main(**options))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_is_one_graph(autocast):
    """Every step has another number of tokens; what is compiled computes what eager does."""
    lm = example()
    torch.manual_seed(3)
    model = lm.AudioLanguageModel()
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    counts = []

    def evaluate(call, inputs) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = call(*inputs)
        loss.backward()
        return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}

    for _ in range(3):
        inputs = lm.batch()
        eager = in_orders(lambda inputs=inputs: evaluate(model, inputs))
        assert_same_but_rounding(evaluate(compiled, inputs), eager)
        counts.append(graphs.frame_count)
    assert counts[0] == counts[-1]


def test_lora_trains_its_adapters_alone_and_merges():
    peft = pytest.importorskip("peft")
    lm = example()
    torch.manual_seed(4)
    plain = lm.AudioLanguageModel()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "project"])
    model = peft.get_peft_model(plain, config)
    before = {name: x.clone() for name, x in model.named_parameters() if not x.requires_grad}
    losses = lm.train(model, 20)
    assert sum(losses[-5:]) < sum(losses[:5])
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    assert trained
    assert all(x.grad is not None and x.grad.any() for x in trained.values())
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters() if not x.requires_grad)
    inputs = lm.batch()
    with torch.no_grad():
        adapted, merged = model(*inputs), model.merge_and_unload()(*inputs)
    torch.testing.assert_close(adapted, merged)


def test_saved_and_loaded(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    lm = example()
    torch.manual_seed(5)
    model, other = lm.AudioLanguageModel().bfloat16(), lm.AudioLanguageModel().bfloat16()
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    inputs = lm.batch()
    with torch.no_grad():
        assert torch.equal(model(*inputs), other(*inputs))


def sharded_on(process, steps: int) -> None:
    """On each of two ranks: DDP and FSDP2 see the same batches and have the same losses; so does FSDP2 in bfloat16."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    lm = example()

    def made() -> nn.Module:
        torch.manual_seed(6)
        model = lm.AudioLanguageModel()
        torch.manual_seed(100 + process.rank)  # of the rank's batches
        return model

    replicated = lm.train(nn.parallel.DistributedDataParallel(made()), steps)
    found = []
    for policy in (
        MixedPrecisionPolicy(),
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False),
    ):
        model = made()
        for block in (*model.encoder, *model.decoder):
            fully_shard(block, mp_policy=policy)
        found.append(lm.train(fully_shard(model, mp_policy=policy), steps))
    for step, (one, two) in enumerate(zip(replicated[:3], found[0][:3], strict=True)):
        assert one == pytest.approx(two, rel=1e-5), step
    assert all(fell(losses, 0.8) for losses in (replicated, *found)), (replicated, found)


def test_ddp_and_fsdp2():
    run(2, sharded_on, 25)
