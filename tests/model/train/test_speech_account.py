"""The account of method asr: against the bytes that a forward leaves, and by hand."""

from dataclasses import replace

import pytest
import torch

from afn_model.afwhisper import AFWhisper
from afn_model.config import AudioConfig, ModelConfig, SpeechConfig
from afn_model.train.account import Account
from afn_model.train.activation_checkpoint import MODES, checkpoint_blocks
from afn_model.train.adapt import adapt
from afn_model.train.curriculum import Stage
from afn_model.train.run_layout import RunLayout
from afn_model.train.speech_account import WINDOW_BYTES, SpeechAccount, account_of
from afn_model.train.typical import longest
from bench import memory

SMALL = SpeechConfig(
    AudioConfig(n_mels=80, width=64, layers=3, heads=2, ffn=256),
    vocab_size=1024,
    width=128,
    layers=3,
    heads=4,
    ffn=512,
    audio_token_id=509,
    stop_token_ids=(511,),
)
ALIKE = 0.05  # as for the whole model


def stage(*trains: str, **more) -> Stage:
    return Stage("some", trains or ("encoder", "decoder"), {"x": 1.0}, "asr", context=2048, batch_tokens=2048, **more)


def left(config: SpeechConfig, stage: Stage, mode: str) -> int:
    """Bytes that are there after a forward and were not before, every op on the path of its kernel."""
    usual = torch.get_default_dtype()
    with memory.counting() as found:
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = AFWhisper(config).train()
        finally:
            torch.set_default_dtype(usual)
        adapt(model, stage, seed=0)
        checkpoint_blocks(model, mode)
        here = model.prepare(memory.packed(config, stage.context, stage.max_audio))
        before = found.now
        loss = model.loss(here)
        kept = found.now - before
        del loss
    return kept


@pytest.mark.parametrize(
    ("some", "mode", "changes"),
    [
        *((stage(), mode, {}) for mode in MODES),
        (stage("decoder"), "none", {}),
        (stage("encoder"), "none", {}),
        (stage(), "none", {"pooled": True, "positions": "rotary"}),
    ],
)
def test_activations_are_what_a_forward_leaves(some, mode, changes):
    config = replace(SMALL, **changes)
    account = SpeechAccount(config, some, RunLayout(dtype="bfloat16", recompute=mode), 1, longest(some))
    recordings = 2 * WINDOW_BYTES * len(account.micro.frames)  # they are there before
    said = float((account.activations() - account.gathered(account.units.root)).max()) - recordings
    assert said == pytest.approx(left(config, some, mode), rel=ALIKE)


def test_states_by_hand():
    """16 bytes of a weight that trains, over the ranks that share it, the tied embedding once; 2 of a frozen one."""
    layout = RunLayout(dtype="bfloat16", shard=4)
    whole = SpeechAccount(SMALL, stage(), layout, 8, longest(stage()))
    with torch.device("meta"):
        model = AFWhisper(SMALL)
    trained, frozen = whole.units.trained, whole.units.frozen  # positions
    assert trained + frozen / 2 == sum(p.numel() for p in model.parameters())
    assert frozen == 2 * model.encoder.embed_positions.weight.numel()
    assert sum(whole.states().values()) + whole.total()["gradients"] == 4 * trained + frozen
    few = SpeechAccount(SMALL, stage("decoder"), layout, 8, longest(stage()))
    assert few.units.frozen >= 2 * sum(p.numel() for p in model.encoder.parameters())
    assert few.units.head == 1024 * 128
    assert not few.units.trains_encoder


def test_af_whispers_shape():
    found = SpeechAccount(SpeechConfig(), stage(), RunLayout(dtype="bfloat16"), 8, longest(stage())).units
    assert (len(found.layers), len(found.encoder), found.head) == (24, 4, 51_866 * 1024)
    decoder = found.trained + found.frozen // 2 - 636_968_960
    block = 2 * 1024 * 4096 + 4096 + 1024 + 6 * 1024**2 + 2 * 1280 * 1024 + 6 * 1024 + 3 * 2 * 1024
    assert decoder == 24 * block + (51_866 + 448) * 1024 + 2 * 1024


@pytest.mark.parametrize("has", [False, True])
def test_ctc_is_counted(has):
    """Its head trains in the root, whether the base has one or not; its logits are there a chunk at a time."""
    config, layout = replace(SpeechConfig(), ctc=has), RunLayout(dtype="bfloat16")
    plain, ctc = (SpeechAccount(config, stage(asr=asr), layout, 8, longest(stage())) for asr in ({}, {"ctc": 0.3}))
    head = 51_867 * (1280 + 1)
    assert ctc.units.root.trained - plain.units.root.trained == head
    assert plain.units.root.frozen - ctc.units.root.frozen == 2 * head * has
    assert ctc.working().max() >= 5 * 51_867 * 323 * 4
    kept, without = (float((one.activations() - one.gathered(one.units.root)).max()) for one in (ctc, plain))
    assert 0 < kept - without < 0.01 * without


def test_the_kind_of_model_decides():
    layout = RunLayout(dtype="bfloat16")
    assert type(account_of(SMALL, stage(), layout, 1, longest(stage()))) is SpeechAccount
    assert issubclass(SpeechAccount, Account)
    other = Stage("other", ("adaptor",), {"x": 1.0}, context=2048, batch_tokens=2048)
    assert type(account_of(ModelConfig(), other, layout, 1, longest(other))) is Account
