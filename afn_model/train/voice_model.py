"""A voice made ready to train: its codec with discriminators, or its talker over the frozen codec; and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from afn_distributed.process import Process
from afn_distributed.shard import full_state_dict, mesh_of, shard
from afn_model.hashing import key, text_key
from afn_model.speech.discriminators import Discriminators
from afn_model.speech.voice import DEFAULT, AFVoice
from afn_model.train.activation_checkpoint import checkpoint_modules
from afn_model.train.adapt import Adapted
from afn_model.train.codec import CodecSettings
from afn_model.train.curriculum import Stage
from afn_model.train.optimiser import make_optimiser
from afn_model.train.run_layout import RunLayout
from afn_model.train.sft import select
from afn_model.train.stage_model import StageModel
from afn_model.weights.checkpoint import SkipInit

JUDGES = "discriminators"


def voice_stage_model(
    voice: AFVoice,
    stage: Stage,
    layout: RunLayout,
    process: Process,
    *,
    settings: object,
    seed: int = 0,
) -> StageModel:
    """Makes a voice ready to train, in place.

    A codec computes in float32, and every rank has all of it with its discriminators: together they are a quarter of
    the talker, and an optimiser step asks them several times. A talker is sharded as other models are, over a codec
    that every rank has in float32.

    Args:
        voice: whole, in float32 and on this rank's device.
        stage: of method codec or talker.
        layout: precision, recomputation and sharding; see ``afn_model.train.run_layout.check_voice``.
        process: this rank.
        settings: of the method.
        seed: of the run, for the discriminators' first weights.
    """
    select(voice, stage.modules)
    voice.train()
    trains, sharded = stage.modules, False
    if isinstance(settings, CodecSettings):
        if settings.adversarial_start is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key(seed, text_key(JUDGES)) >> 1)
                judges = Discriminators(**settings.discriminators)
            voice.add_module(JUDGES, judges.to(process.device).train())
            trains = (*trains, JUDGES)
        codec: nn.Module = voice.codec
        kept = codec.state_dict()
        codec.moving = [name for name, _ in codec.named_buffers() if name in kept]  # type: ignore[assignment]
    else:
        voice.codec.eval()
        talker = voice.talker
        assert talker is not None, "the voice has no talker"
        blocks = list(talker.language_model.layers)
        if layout.recompute in ("selective", "full"):
            parts: Any = [block.mlp for block in blocks] if layout.recompute == "selective" else blocks
            checkpoint_modules(parts)
        compute = getattr(torch, layout.dtype)
        sharded = process.world_size > 1 or compute != torch.float32
        if sharded:
            mesh = mesh_of(process, layout.shard or None)
            shard(talker, mesh, blocks=blocks, compute_dtype=compute, forwards=("loss",))
    optimiser = make_optimiser(
        voice.named_parameters(),
        lr=stage.lr,
        betas=stage.betas,
        weight_decay=stage.weight_decay,
        rates=stage.rates,
        kind=stage.optimiser,
        apex=not isinstance(settings, CodecSettings),  # it counts the steps of a group, not of each parameter
    )
    return StageModel(voice, optimiser, Adapted(trains), sharded, copied=isinstance(settings, CodecSettings))


def export_voice(voice: AFVoice, folder: Path) -> None:
    """Writes a voice's folder from rank 0, in float32 and without discriminators; all ranks must call it."""
    state = full_state_dict(voice)
    if not state:
        return
    state = {name: tensor for name, tensor in state.items() if name.partition(".")[0] != JUDGES}
    with torch.device("meta"), SkipInit():
        whole = AFVoice(voice.config)
    whole.register_buffer(DEFAULT, state.get(DEFAULT))
    whole.load_state_dict(state, assign=True)
    whole.save_pretrained(folder)
