"""Weights on a command line: adapters, codes, dtypes."""

import json

import pytest
import torch

from afn_model import AFNext, SamplingParams, Session
from afn_model.cli import main
from afn_model.cli.weights import reader
from afn_model.network.fused import quantise_fp8
from afn_model.train import lora
from afn_model.train.quantise import quantise
from tests.tiny import conversation, noise, save_tiny

FEW = SamplingParams(max_new_tokens=3)
ASKED = conversation("What is said?", {"array": noise(1.0), "sampling_rate": 16_000})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """A folder with an adapter that changes a lot."""
    folder = tmp_path_factory.mktemp("adapter")
    adapted = AFNext.from_pretrained(model)
    lora.add(adapted, 2, 4.0, seed=1)
    with torch.no_grad():
        for layer in lora.adapters(adapted).values():
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(2))
    lora.save(adapted, folder)
    return folder


def logits(of: AFNext) -> torch.Tensor:
    with torch.no_grad():
        return of.logits(torch.arange(20, 28)[None])


def test_adapters_and_codes(model, adapter):
    plain = AFNext.from_pretrained(model)
    adapted, coded, both, fp8 = (AFNext.from_pretrained(model) for _ in range(4))
    lora.load(adapted, adapter)
    lora.merge(adapted)
    quantise(coded.language_model, "nf4")
    quantise(both.language_model, "int8")
    lora.load(both, adapter)
    lora.load(fp8, adapter)
    lora.merge(fp8)
    quantise_fp8(fp8.language_model)
    expect = {(adapter, None): adapted, (None, "nf4"): coded, (adapter, "int8"): both, (adapter, "fp8"): fp8}
    for options, expected in expect.items():
        session = Session(model, read=reader(*map(lambda x: x and str(x), options)))
        assert torch.equal(logits(session.model), logits(expected))
        assert not torch.equal(logits(expected), logits(plain))
        assert session.answer(ASKED, FEW)[0].answer_tokens == 3
        assert not session.model.training


def test_from_a_command_line(model, adapter, capsys):
    def said(*options):
        assert main(["ask", "What is said?", "--model", str(model), "--json", "--max-new-tokens", "6", *options]) == 0
        return json.loads(capsys.readouterr().out)

    plain = said()
    found = said("--adapter", str(adapter), "--quantize", "int8", "--threads", "1")
    assert found["answer"] != plain["answer"]
    assert (found["adapter"], found["quantize"]) == (str(adapter), "int8")
    assert said("--dtype", "half")["tokens"]["answer"] == 6
    assert main(["ask", "?", "--model", str(adapter)]) == 2
    assert f"a LoRA adapter, not a model; --adapter {adapter} puts it on its base" in capsys.readouterr().err
