"""What trains of a stage's model: whole parts, adapters on others, and a base in few bits under them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.speech.voice import AFVoice
from afn_model.train import lora
from afn_model.train.curriculum import Stage
from afn_model.train.lora_linear import LoRADropout, adapters, set_dropout
from afn_model.train.methods import SPEECH, VOICE, check_kind
from afn_model.train.quantise import code_base
from afn_model.train.sft import select
from afn_model.weights.checkpoint import on_meta
from afn_model.weights.slices import StoredWeights
from afn_model.weights.speech import speech_on_meta


@dataclass(frozen=True)
class Adapted:
    """What trains.

    Args:
        trains: names of submodules that train whole, and "lora", "adaptor_lora" and "encoder_lora" for adapters in the
            language model or its head, the adaptor and the encoder.
        saved: submodules that an adapter's file has whole: those that train, or that the adapter gone on from had.
        dropout: of the adapters' inputs, if any.
    """

    trains: tuple[str, ...]
    saved: tuple[str, ...] = ()
    dropout: LoRADropout | None = None


def load_base(
    start: Path, stage: Stage, device: torch.device
) -> tuple[AFNext | AFWhisper | AFVoice, StoredWeights | None]:
    """The model that a stage starts from, on the meta device, and the weights that ``stage_model`` fills it with.

    A base that is quantised is there already, on the device: its layers are read and coded one after the other. A voice
    is there too, in float32, and its weights are None. A stage with CTC gives a model that has no CTC head a new one.

    Raises:
        ValueError: as ``afn_model.weights.checkpoint.load``; another kind of model than the method trains.
    """
    kind = check_kind(start, stage.name, stage.method)
    if kind == VOICE:
        voice = AFVoice.from_pretrained(start, dtype=torch.float32, device=device)
        if stage.method == "talker" and voice.talker is None:
            raise ValueError(f"stage {stage.name}: {start} has a codec and no talker")
        return voice, None
    if kind == SPEECH:
        speech, stored = speech_on_meta(AFWhisper, start)
        if stage.asr.get("ctc") and speech.ctc_head is None:
            speech.add_ctc_head(device)
        return speech, StoredWeights(stored)
    model, stored = on_meta(AFNext, start)
    base = (stage.lora or {}).get("base")
    if base is not None:
        code_base(model, stored, base, device)
    return model, StoredWeights(stored)


def adapt(model: AFNext, stage: Stage, *, seed: int, rank: int = 0, device: torch.device | None = None) -> Adapted:
    """Freezes what does not train, and gives the other parts their adapters where the stage has some.

    Args:
        model: as ``load_base`` returns it.
        stage: says what trains.
        seed: of the run, for dropout.
        rank: of this process, for dropout.
        device: of adapters, where the model's weights are still to be read.

    Raises:
        ValueError: an adapter that does not fit the model, or a quantised part without adapters that should train.
    """
    if not with_adapters(stage):
        select(model, stage.modules)
        return Adapted(stage.modules)
    settings = dict(stage.lora or {})
    dropout, base = (settings.pop(key, None) for key in ("dropout", "base"))
    if stage.adapter:
        loaded = lora.load(model, stage.adapter, device)
    else:
        loaded = ()
        lora.add(model, **settings, device=device)
    layers = adapters(model)
    adapted = {name.partition(".")[0] for name in layers}
    covered = adapted | ({"lm_head"} if "language_model" in adapted else set())
    whole = tuple(name for name in stage.modules if name not in covered)
    if base is not None and "language_model" in whole:
        raise ValueError(f"stage {stage.name}: a base in {base} cannot train whole, and the adapter has no layer of it")
    select(model, whole)
    for name, layer in layers.items():
        trained = name.partition(".")[0] in stage.modules
        layer.lora_A.requires_grad_(trained)
        layer.lora_B.requires_grad_(trained)
    drop = LoRADropout(dropout, seed, rank) if dropout else None
    set_dropout(model, drop)
    kinds = {"language_model": "lora", "lm_head": "lora", "adaptor": "adaptor_lora", "encoder": "encoder_lora"}
    marks = dict.fromkeys(kinds[part] for part in kinds if part in adapted and part in stage.modules)
    return Adapted((*whole, *marks), lora.outermost(dict.fromkeys((*whole, *loaded))), drop)


def with_adapters(stage: Stage) -> bool:
    return bool(stage.lora or stage.adapter)
