"""Recomputation: the same gradients bit for bit, and less kept between forward and backward."""

from collections import Counter

import pytest
import torch

from afn_model.train.activation_checkpoint import MODES, checkpoint_blocks
from tests.tiny import noise, tiny

pytest.importorskip("espeakng_loader", reason="the tiny model's tokenizer needs its voices")


def batch_of(processor):
    sound = {"type": "audio", "audio": noise(1.0)}
    question = {"role": "user", "content": [sound, {"type": "text", "text": "What?"}]}
    return processor([[question, {"role": "assistant", "content": "one two three"}]], training=True)


def passes(mode: str, frozen: tuple[str, ...] = ()):
    """Gradients, forwards of each kind of module, and bytes kept for the backward."""
    model, processor = tiny()
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)
    counts = Counter()
    for name, module in model.named_modules():
        if name.endswith(("self_attn", "mlp.gate_proj", "fc2")):
            kind = f"{name.partition('.')[0]}.{name.rpartition('.')[2]}"
            module.register_forward_pre_hook(lambda module, args, kind=kind: counts.update([kind]))
    model.train()
    checkpoint_blocks(model, mode)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(batch_of(processor))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, dict(counts), sum(size for where, size in kept.items() if where not in weights)


@pytest.mark.parametrize("frozen", [(), ("encoder",), ("language_model", "lm_head"), ("encoder", "adaptor")])
def test_gradients_are_the_same_bit_for_bit(frozen):
    wanted, once, most = passes("none", frozen)
    assert set(once.values()) == {2}
    sizes = [most]
    for mode in MODES[1:]:
        found, counts, size = passes(mode, frozen)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        encoder = 2 if "encoder" in frozen else 4
        assert counts["encoder.self_attn"] == encoder
        assert counts["language_model.gate_proj"] == (2 if mode == "encoder" else 4)
        assert counts["language_model.self_attn"] == (4 if mode == "full" else 2)
        sizes.append(size)
    assert sizes[1] > sizes[2] > sizes[3]
    assert sizes[0] == sizes[1] if "encoder" in frozen else sizes[0] > sizes[1]


def test_nothing_is_made_again_without_gradients():
    model, processor = tiny()
    for mode in MODES:
        checkpoint_blocks(model, mode)
    wanted = tiny()[0].generate(batch_of(processor), max_new_tokens=3)
    assert model.generate(batch_of(processor), max_new_tokens=3) == wanted


def test_unknown_modes():
    with pytest.raises(ValueError, match="no recomputation 'some'; there are none, encoder, selective, full"):
        checkpoint_blocks(None, "some")
