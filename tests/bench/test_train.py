"""The training benchmark: its batches, that ours and the peer compute the same, and what it writes on a CPU."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from afn_model import AFNext
from afn_model.audio.frames import audio_tokens
from bench import train, train_models

CONFIG = train.configuration("tiny", None)
CASES = {case.name: replace(case, context=384, longest=4.0) for case in train.CASES}


@pytest.mark.parametrize("case", [CASES["pre-1"], train.CASES[3]], ids=["cut", "24k"])
def test_a_batch_fills_the_context(case):
    batch = train_models.make_batch(CONFIG, case, 3)
    assert len(batch.input_ids) == len(batch.labels) == int(batch.cu_seqlens[-1]) == case.context
    heard = int((batch.input_ids == CONFIG.audio_token_id).sum())
    assert heard == sum(audio_tokens(n) for n in batch.samples.tolist())
    assert heard > case.context / 3
    assert int(batch.windows_per_audio.sum()) == len(batch.samples) == len(batch.pcm)
    assert int(batch.samples.max()) <= 16_000 * case.longest
    assert all(row[:count].abs().max() > 500 for row, count in zip(batch.pcm, batch.samples, strict=True))
    supervised = batch.labels != -100
    assert torch.equal(batch.labels[supervised], batch.input_ids[supervised])
    assert torch.equal(batch.pcm, train_models.make_batch(CONFIG, case, 3).pcm)
    assert not torch.equal(batch.input_ids, train_models.make_batch(CONFIG, case, 4).input_ids)


def gradients(variant: train_models.Contender, batch, where: str) -> tuple[float, dict]:
    loss = variant.step(variant.prepare(batch))
    part = dict(variant.model.named_modules())[where]
    return float(loss), {name: p.grad for name, p in part.named_parameters()}


def stand_in_for_liger() -> ModuleType:
    """Liger's two names that are used, in plain PyTorch: its kernels need a GPU."""
    module = ModuleType("liger_kernel.transformers")
    module.apply_liger_kernel_to_qwen2 = lambda **kinds: None
    module.LigerFusedLinearCrossEntropyLoss = lambda: lambda weight, x, labels: F.cross_entropy(x @ weight.T, labels)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other"), [("pre-2", "transformers"), ("full-24k", "transformers"), ("pre-2", "liger")]
)
def test_ours_and_the_peer_compute_the_same(name, other, tmp_path, monkeypatch):
    """The same weights in both: loss and gradients agree, with sequences padded in groups against packed ones."""
    pytest.importorskip("transformers", reason="transformers is a test dependency")
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stand_in_for_liger())
    torch.manual_seed(0)
    case = replace(CASES[name], context=768)
    peer, ours = (train.VARIANTS[x](CONFIG, case, "cpu") for x in (other, "ours"))
    peer.model.save_pretrained(tmp_path)
    ours.model.load_state_dict(AFNext.from_pretrained(tmp_path).state_dict())
    batch = train_models.make_batch(CONFIG, case, 5)
    assert len(peer.prepare(batch)) < len(batch.cu_seqlens) - 1, "some sequences share a group"
    loss, grads = gradients(ours, batch, "adaptor")
    peers, others = gradients(peer, batch, "model.multi_modal_projector")
    assert loss == pytest.approx(peers, rel=1e-5)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, others[key], rtol=1e-3, atol=1e-5 * float(grad.abs().max()) + 1e-8)
    frozen = [p.grad for n, p in ours.model.named_parameters() if n.startswith("language_model")]
    assert all(grad is None for grad in frozen) == (name == "pre-2")


@pytest.mark.slow
def test_a_case_end_to_end_on_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "STEPS", 3)
    out = tmp_path / "train.jsonl"
    arguments = ["--cases", "pre-1", "--variants", "ours", "liger", "--context", "256", "--out", str(out)]
    train.main(arguments)
    train.main(arguments)
    mine, liger = (train.json.loads(text) for text in out.read_text().splitlines())
    facts = ("case", "variant", "device", "tokens", "steps")
    assert tuple(mine[fact] for fact in facts) == ("pre-1", "ours", "cpu", 256, 3)
    assert "not a GPU figure" in mine["cut"]
    assert mine["mfu"] is mine["goal"] is None
    assert 0 <= mine["data_wait"] < 1
    assert mine["tokens_per_s"] == pytest.approx(256e3 / mine["step_ms"], rel=0.9)
    assert mine["trained_parameters"] == sum(p.numel() for p in AFNext(CONFIG).adaptor.parameters())
    assert mine["kernel_ms"]["matrix products"] > 0
    assert mine["kernels"][0]["ms"] >= mine["kernels"][-1]["ms"] > 0
    assert liger.get("absent") or liger["tokens"] == 256
    assert "tokens/s" in capsys.readouterr().out


def test_what_does_not_fit_is_tried_with_fewer_layers(monkeypatch):
    def alone(case, variant, name, layers, device, until):
        room = {"ours": 8, "transformers": 4}[variant]
        record = {"variant": variant, "text_layers": layers}
        return record | ({"absent": "out of memory"} if layers > room else {})

    monkeypatch.setattr(train, "alone", alone)
    found = list(train.compared(CASES["full-8k"], ["ours", "transformers"], "af-next", "cpu", 60))
    fitted = [(x["variant"], x["text_layers"]) for x in found if "absent" not in x]
    assert fitted == [("ours", 7), ("transformers", 4), ("ours", 4)]


def test_layers_that_fit_by_memory_and_context():
    h100, h200 = 80e9, 141e9
    depth = {(case.name, gpu): train.deepest(case, "af-next", gpu) for case in train.CASES[2:] for gpu in (h100, h200)}
    assert 8 <= depth["full-8k", h100] < depth["full-8k", h200] <= 28
    assert depth["full-24k", h200] > depth["full-128k", h200] >= 6
