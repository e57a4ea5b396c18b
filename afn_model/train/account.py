"""The memory of a GPU in an optimiser step, from shapes alone: what a run holds, keeps and works with. Nothing is run.

Weights are counted on the stage's own model without data, with its adapters and what it freezes; activations by what
each op saves for its backward. The peak is the largest of the step's phases: the loss, the backward of a decoder
layer, of an encoder block, and the sum of the gradients that are gathered with the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from afn_distributed.costs import SequenceLoad, sequence_load
from afn_distributed.dispatch import assign_balanced
from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.audio.frames import token_frames
from afn_model.config import ModelConfig, SpeechConfig
from afn_model.network.sequence_shard import cost
from afn_model.train.adapt import adapt
from afn_model.train.curriculum import Stage
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.lora_linear import LoRALinear
from afn_model.train.optimiser import MOMENTS
from afn_model.train.optimiser_offload import BUCKET
from afn_model.train.quantise import quantise
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_model import WHOLE_SHARE, copies_alone, gathered_together
from afn_model.weights.checkpoint import SkipInit

RESERVE = 8e9  # bytes: CUDA's context, NCCL's buffers, matmul workspaces, holes between blocks; assumed
LARGE = 10_000  # classes from which logits are worth counting
LOSS_CHUNK = 0.5e9  # most bytes of logits that the head's loss works with; see ``ak.linear_cross_entropy``


@dataclass(frozen=True)
class BatchShape:
    """What one sequence group computes at once.

    Args:
        lengths: tokens of the documents that attention runs over.
        frames: encoder frames of each audio window, two for an audio token.
        supervised: tokens in the loss.
        answers: of ``lengths``, the last so many are answers to the first document (GRPO, DPO); 0 for a packed batch.
        texts: of ``lengths``, the tokens that are no placeholders, which the decoder of method asr reads.
    """

    lengths: tuple[int, ...]
    frames: tuple[int, ...]
    supervised: int
    answers: int = 0
    texts: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Unit:
    """Weights that are gathered and freed together.

    Args:
        trained: parameters that train.
        frozen: bytes of those that do not, as they are held.
        products: parameters of the decoder's linear layers among those that train, which may travel in FP8.
        frozen_products: the same of those that do not.
    """

    trained: int
    frozen: int
    products: int = 0
    frozen_products: int = 0


@dataclass(frozen=True)
class StageUnits:
    """A stage's model without data.

    Args:
        root, layers, encoder: weights gathered with the model, with each decoder layer, with each group of encoder
            blocks; what a unit holds beside the others is in it alone.
        fixed: bytes that are never cut over ranks: buffers of weights in few bits.
        head: parameters of the head that train; embeddings likewise are in ``root``, and are the head of asr's decoder.
        trains_encoder: whether the encoder has a gradient.
        inputs: last names of the linear layers whose inputs are kept, of a decoder layer and an encoder block.
        ranks: Σ ranks of the adapters of a decoder layer.
        copied: trained parameters that GRPO's reference needs a frozen copy of.
        largest: parameters of the largest tensor that trains.
    """

    root: Unit
    layers: tuple[Unit, ...]
    encoder: tuple[Unit, ...]
    fixed: int
    head: int
    trains_encoder: bool
    trains_adaptor: bool
    inputs: frozenset[str]
    ranks: int
    copied: int
    largest: int

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.root, *self.layers, *self.encoder)

    @property
    def trained(self) -> int:
        return sum(unit.trained for unit in self.units)

    @property
    def frozen(self) -> int:
        return sum(unit.frozen for unit in self.units)


def stage_units(config: ModelConfig | SpeechConfig, stage: Stage, layout: RunLayout, *, whole: bool) -> StageUnits:
    """The units of a stage's model; ``whole`` says whether its frozen weights are kept whole."""
    size = getattr(torch, layout.dtype).itemsize
    ctc = bool(stage.asr.get("ctc"))
    return _stage_units(config, stage.trains, json.dumps(stage.lora), stage.adapter, stage.name, size, whole, ctc)


@lru_cache(maxsize=64)
def _stage_units(
    config: ModelConfig | SpeechConfig,
    trains: tuple[str, ...],
    lora: str,
    adapter: str,
    name: str,
    size: int,
    whole: bool,
    ctc: bool,
) -> StageUnits:
    speech = isinstance(config, SpeechConfig)
    method = "asr" if speech else "sft"
    more = {"lora": json.loads(lora), "adapter": adapter, "asr": {"ctc": 0.5} if ctc else {}}
    stage = Stage(name, trains, {"-": 1.0}, method, batch_tokens=8192, **more)
    with torch.device("meta"), SkipInit():
        model: Any = AFWhisper(config) if isinstance(config, SpeechConfig) else AFNext(config)
        if ctc and model.ctc_head is None:
            model.add_ctc_head()
    head = model.decoder.embed_tokens if speech else model.lm_head
    base = (stage.lora or {}).get("base")
    if base is not None:
        quantise(model.language_model, base, torch.device("meta"))
    adapt(model, stage, seed=0)
    blocks = gathered_together(model, frozen_whole=whole)
    groups = [[block] if isinstance(block, nn.Module) else list(block) for block in blocks]
    inside = {id(p) for group in groups for module in group for p in module.parameters()}
    linear = {id(m.weight) for block in model.blocks for m in block.modules() if isinstance(m, nn.Linear)}
    found = [_unit([p for module in group for p in module.parameters()], size, linear) for group in groups]
    cut = len(groups) - len([g for g in groups if g[0] in set(model.encoder.layers)])
    adapted = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    inputs = {n.rpartition(".")[0] for n in trained if n.endswith(".weight")}
    inputs |= {n for n, m in adapted.items() if m.lora_A.requires_grad}
    first = ("decoder.layers.0." if speech else "language_model.layers.0.", "encoder.layers.0.")
    originals = set(stage.modules) - {"language_model", "lm_head"} if adapted and not adapter else set()
    copied = [p for n, p in model.named_parameters() if n in trained]
    if adapted and not adapter:
        copied = [p for n, p in model.named_parameters() if n in trained and n.partition(".")[0] in originals]
    return StageUnits(
        root=_unit([p for p in model.parameters() if id(p) not in inside], size, linear),
        layers=tuple(found[:cut]),
        encoder=tuple(found[cut:]),
        fixed=sum(b.nbytes for b in model.buffers()),
        head=sum(p.numel() for p in head.parameters() if p.requires_grad),
        trains_encoder=any(n.startswith("encoder.") for n in trained),
        trains_adaptor=any(n.startswith("adaptor.") for n in trained),
        inputs=frozenset(f"{n.partition('.')[0]}.{n.rpartition('.')[2]}" for n in inputs if n.startswith(first)),
        ranks=sum(m.rank for n, m in adapted.items() if n.startswith(first[0])),
        copied=sum(p.numel() for p in copied),
        largest=max((p.numel() for p in model.parameters() if p.requires_grad), default=0),
    )


def _unit(parameters: Sequence[nn.Parameter], size: int, linear: set[int]) -> Unit:
    trained, frozen = ([p for p in parameters if p.requires_grad == wanted] for wanted in (True, False))
    products = (sum(p.numel() for p in some if id(p) in linear) for some in (trained, frozen))
    return Unit(sum(p.numel() for p in trained), sum(p.numel() for p in frozen) * size, *products)


def keeps_whole(config: ModelConfig | SpeechConfig, stage: Stage, layout: RunLayout, ranks: int, memory: float) -> bool:
    """Whether every rank holds the frozen weights whole, by the rule of ``stage_model.kept_whole``."""
    if layout.frozen == "auto" and (layout.shard or ranks) > 1:
        return stage_units(config, stage, layout, whole=True).frozen <= WHOLE_SHARE * memory
    return layout.frozen != "sharded" or (layout.shard or ranks) == 1


class Account:
    """What one stage takes of the fullest GPU, in bytes.

    Args:
        config: of the model.
        stage: of the curriculum.
        layout: of the stage, from ``for_stage``.
        ranks: GPUs.
        micro: of each sequence group.
        memory: bytes of a GPU; decides whether frozen weights are kept whole where the layout leaves it open.
    """

    def __init__(
        self,
        config: ModelConfig | SpeechConfig,
        stage: Stage,
        layout: RunLayout,
        ranks: int,
        micro: BatchShape,
        memory: float = 80e9,
        reserve: float = RESERVE,
    ):
        self.config, self.stage, self.layout, self.ranks, self.micro = config, stage, layout, ranks, micro
        self.size, self.shard = getattr(torch, layout.dtype).itemsize, layout.shard or ranks
        self.whole = keeps_whole(config, stage, layout, ranks, memory)
        self.units = stage_units(config, stage, layout, whole=self.whole)
        self.copies = copies_alone(stage, layout, ranks)
        self.sums_on_host = self.copies and layout.offload_gradients
        self.sharded = (ranks > 1 or layout.dtype != "float32") and not self.copies
        self.reserve = reserve
        self.text: Any = config if isinstance(config, SpeechConfig) else config.text
        self.load = self.sequence_load()
        windows = assign_balanced([cost(frames) for frames in micro.frames], self.load.plan.ranks)
        self.frames = np.bincount(windows, np.array(micro.frames), self.load.plan.ranks)
        self.rows = self.load.rows

    @property
    def mode(self) -> str:
        """Which activations are recomputed."""
        return self.layout.recompute

    def sequence_load(self) -> SequenceLoad:
        text, layout = self.text, self.layout
        shared = (layout.ulysses, layout.ring) if self.stage.packed else (1, 1)
        return sequence_load(self.micro.lengths, *shared, text.heads, text.kv_heads, text.head_dim, self.size)

    def states(self) -> dict[str, float]:
        """Weights and what the optimiser keeps."""
        units, reference = self.units, 0.0
        if not self.stage.packed and (self.stage.method == "dpo" or GRPOSettings(**self.stage.grpo).kl > 0):
            reference = self.size * units.copied / (1 if self.stage.lora else self.shard)
        return {
            "frozen weights": units.frozen / (1 if self.whole else self.shard) + units.fixed,
            "trained weights": (self.size if self.copies else 4) * units.trained / self.shard,
            "moments": 0.0 if self.layout.offload_optimiser else self.moments(),
            "reference": reference,
        }

    def moments(self) -> float:
        return MOMENTS[self.stage.optimiser] * self.units.trained / self.shard

    def host(self) -> dict[str, float]:
        """Bytes of the host by kind: of what is offloaded, and of what a checkpoint is written from; of each rank."""
        layout, units = self.layout, self.units
        if not (layout.offload_optimiser or layout.offload_activations):
            return {}
        found = {"float32 weights": 4.0 * units.trained} if self.copies else {}
        if layout.offload_optimiser:
            found["moments"] = self.moments()
        if self.sums_on_host:
            found["gradients"] = 4.0 * units.trained
        if layout.offload_activations:
            found["activations"] = float(self.offloaded().max())
        return {**found, "checkpoint": 4 * units.trained / self.shard + self.moments()}

    def offloaded(self) -> np.ndarray:
        """[ranks] bytes of inputs of recomputed blocks that are on the host after a forward."""
        if not self.layout.offload_activations:
            return 0 * self.rows
        layers, mode = self.text.layers, self.mode
        count = {"full": 2 * layers - 1, "selective": layers}.get(mode, 0)
        found = count * self.input_of_mlp()
        if self.units.trains_encoder and mode != "none":
            found = found + self.frames * self.size * self.config.audio.width * (2 * self.config.audio.layers - 1)
        return found

    def staging(self) -> float:
        """Bytes of the two buckets of states that a step of an offloaded optimiser has on the GPU."""
        if not self.layout.offload_optimiser:
            return 0.0
        each = (4 if self.copies else 0) + (4 if self.sums_on_host else 0) + MOMENTS[self.stage.optimiser]
        largest, rest = (each * n / self.shard for n in (self.units.largest, self.units.trained))
        return min(2 * max(BUCKET, largest), 2 * rest)

    def gathered(self, unit: Unit) -> float:
        """Bytes of a unit's weights while they are whole; nothing where they always are."""
        if not self.sharded:
            return 0.0
        less = (self.size - 1) * self.layout.fp8  # bytes of a weight that travels in FP8
        found = self.size * unit.trained - less * unit.products
        return found if self.whole else found + unit.frozen - less * unit.frozen_products

    def keeps(self, *names: str) -> bool:
        return any(name in self.units.inputs for name in names)

    def attention(self) -> np.ndarray:
        """[ranks] bytes that a decoder layer's attention keeps, its projections' inputs included."""
        text, load, e = self.text, self.load, self.size
        wide = 4 if load.plan.ring > 1 else e
        out = load.q * (wide * text.head_dim + 4)  # and the log of the sum of exponentials
        keys = load.kv if load.plan.ring > 1 else load.spread
        own = load.shard_rows * (e * text.head_dim * (load.q + 2 * keys) + out)
        x = self.keeps("language_model.q_proj", "language_model.k_proj", "language_model.v_proj")
        again = load.plan.ranks > 1 and self.keeps("language_model.o_proj")
        norms = self.rows * (2 * (e * text.width + 4) + e * text.width * (int(x) + int(again)))
        return own + norms

    def mlp(self) -> np.ndarray:
        """[ranks] bytes that a decoder layer's MLP keeps where it is not recomputed, its input left out."""
        ffn, down = self.text.ffn, self.keeps("language_model.down_proj")
        return self.rows * (self.size * ffn * (2 + down) + self.size * self.units.ranks)

    def input_of_mlp(self) -> np.ndarray:
        return self.rows * self.size * self.text.width

    def layer(self, mode: str) -> np.ndarray:
        """[ranks] bytes that a decoder layer keeps between its forward and its backward."""
        kept = 0 if self.layout.offload_activations else 1
        if mode == "full":
            return kept * 2 * self.input_of_mlp()
        needed = self.keeps("language_model.gate_proj", "language_model.up_proj")
        if mode == "selective":
            return self.attention() + kept * self.input_of_mlp()
        return self.attention() + self.mlp() + self.input_of_mlp() * needed

    def block(self) -> np.ndarray:
        """[ranks] bytes that an encoder block keeps."""
        audio, keeps = self.config.audio, self.keeps
        columns = audio.width * (6 + keeps("encoder.q_proj", "encoder.k_proj") + keeps("encoder.fc1"))
        columns += audio.ffn * (1 + keeps("encoder.fc2"))
        return self.frames * (self.size * columns + 4 * (audio.heads + 4))

    def encoder(self) -> np.ndarray:
        """[ranks] bytes that encoder and adaptor keep."""
        audio, text, e = self.config.audio, self.text, self.size
        tokens, found = self.frames / 2, self.stem_and_blocks()
        if self.units.trains_encoder or self.units.trains_adaptor:
            trained = self.units.trains_adaptor
            found = found + tokens * e * (text.width + trained * (text.width + audio.width))
        return found

    def stem_and_blocks(self) -> np.ndarray:
        """[ranks] bytes that the encoder keeps, the output of its last norm not included."""
        audio, e, found = self.config.audio, self.size, np.zeros(len(self.frames))
        if self.units.trains_encoder:
            inputs = self.frames * e * audio.width
            every = self.block() * audio.layers
            if self.layout.recompute != "none":
                every = inputs * (2 * audio.layers - 1)
                if self.layout.offload_activations:  # the last block's leave with the first of the decoder
                    every = inputs * 2 * (self.layout.recompute == "encoder")
            # Of the stem: both inputs, both outputs before their GELU; then the sum that the last norm reads.
            found += every + self.frames * e * (2 * audio.n_mels + 6 * audio.width)
        return found

    def head(self) -> np.ndarray:
        """[ranks] bytes that the last norm and the head keep: gradients that the loss has computed already."""
        text, e = self.text, self.size
        if not self.stage.packed:
            return self.rows * e * text.width + self.micro.supervised * (e * text.width + 8)
        return 2 * self.rows * e * text.width + e * self.units.head

    def activations(self) -> np.ndarray:
        """[ranks] bytes that a forward leaves for its backward, with the weights that stay gathered."""
        layers = self.layer(self.mode) * self.text.layers
        if self.layout.offload_activations:
            layers = layers + {"full": 2, "selective": 1}.get(self.mode, 0) * self.input_of_mlp()
        elif self.mode == "full":  # the first layer has one input
            layers = layers - self.input_of_mlp()
        return self.gathered(self.units.root) + layers + self.encoder() + self.head()

    def moving(self) -> np.ndarray:
        """[ranks] bytes of keys and values of other ranks, and of what the all-to-alls send and receive."""
        load, found = self.load, np.zeros(self.load.plan.ranks)
        arriving = [sum((load.key_bytes(t) for t in some), found) for some in load.steps()]
        if arriving:
            wide = 4 / self.size
            # Two steps' keys, their float32 gradients on the way, and the float32 sums of this rank's own.
            found = found + np.max(arriving, 0) * ((1 if len(arriving) == 1 else 2) * (1 + wide) + wide)
            found = found + load.shard_rows * self.text.head_dim * 4 * (load.q + 2 * load.kv)
        if load.plan.ulysses > 1:
            found = found + 2 * load.head_bytes()[0]
        return found

    def inner(self) -> np.ndarray:
        """[ranks] bytes of what a decoder layer recomputes and of its gradients, at their most."""
        text, mode, kept, row = self.text, self.mode, self.layer(self.mode), self.rows * self.size
        again = {"none": 0 * kept, "encoder": 0 * kept, "selective": self.mlp()}
        again["full"] = self.layer("none")
        # Gradients of the MLP's inner activations replace, one after another, what it kept.
        mlp = again[mode] + row * text.ffn * (3 - self.keeps("language_model.down_proj")) + row * 2 * text.width
        attention = (again[mode] if mode == "full" else 0) + row * 5 * text.width + self.moving()
        if self.layout.fp8:  # codes of a gradient, of its transpose or of an input's, and of a weight
            mlp = mlp + self.rows * (text.ffn + max(text.ffn, text.width)) + text.width * text.ffn
        return np.maximum(mlp, attention)

    def working(self) -> np.ndarray:
        """[ranks] bytes beyond states, gradients and activations at the peak."""
        text, audio, mode, e = self.text, self.config.audio, self.mode, self.size
        units, kept, row, inner = self.units, self.layer(mode), self.rows * e, self.inner()
        if self.sums_on_host:  # of a layer: those that arrive, are added to, and leave
            inner = inner + 3 * 4 * text.width * text.ffn
        if self.layout.offload_activations:  # the inputs of the next block
            inner = inner + {"full": 2, "selective": 1}.get(mode, 0) * self.input_of_mlp()
        if self.copies:  # what the last norm and the head kept is gone, and with it the head's own gradient
            inner = inner - self.head()
        # The loss of SFT computes the head's gradient in its forward, the other methods' in their backward.
        inner = inner + e * units.head * (not self.stage.packed)
        layer = max(units.layers, key=self.gathered, default=Unit(0, 0))
        blocks = self.gathered(layer) * min(2, len(units.layers))
        phases = [
            np.full(len(row), LOSS_CHUNK if text.vocab_size > LARGE else 0.0),
            inner + blocks,
            inner + blocks + self.sums(layer) - kept - row * text.width,
        ]
        if units.trains_encoder:
            group = max(units.encoder, key=self.gathered, default=Unit(0, 0))
            encoded = (self.block() if mode != "none" else 0) + self.frames * e * 2 * audio.ffn
            if self.layout.offload_activations:
                encoded = encoded + self.frames * e * audio.width * 4
            phases.append(encoded + 2 * self.gathered(group) + self.sums(group) - kept * text.layers)
        # Weights are freed before their gradients are summed.
        root = self.sums(units.root) - self.gathered(units.root) - e * units.head * self.stage.packed
        phases.append(root - kept * text.layers - self.encoder())
        phases.append(self.staging() - self.activations())
        return np.maximum.reduce(phases)

    def sums(self, unit: Unit) -> float:
        """Bytes of a unit's gradients while they are summed: whole in the compute dtype and in float32."""
        if self.copies:
            return float(self.size * unit.trained)
        if not self.sharded:
            return 4.0 * unit.trained
        return unit.trained * (self.size + 4 + 4 / self.shard * (self.shard > 1))

    def rollout(self) -> float:
        """Bytes on a GPU that samples: states, and the weights that training cuts, gathered."""
        units = self.units
        return sum(self.states().values()) + sum(self.gathered(unit) for unit in units.units) + self.cache()

    def cache(self) -> float:
        """Bytes of keys and values of the prompts that are sampled together, each prompt's once."""
        text, settings = self.text, GRPOSettings(**self.stage.grpo)
        tokens = settings.prompts * (self.micro.lengths[0] + settings.group * settings.max_new_tokens)
        return tokens * 2 * text.layers * text.kv_heads * text.head_dim * self.size

    def total(self) -> dict[str, float]:
        """Bytes by column, of the fullest GPU; "peak" names what decides."""
        states = sum(self.states().values())
        gradients = 0.0 if self.sums_on_host else 4 * self.units.trained / self.shard
        kept, working = self.activations(), self.working()
        rank = int(np.argmax(kept + working))
        found: dict[str, Any] = {
            "states": states,
            "gradients": gradients,
            "activations": float(kept[rank]),
            "working": float(working[rank]),
            "reserve": self.reserve,
        }
        found["total"] = sum(found.values())
        if self.stage.method == "grpo":
            found["rollout"] = self.rollout() + self.reserve
        return found

    def needs(self) -> float:
        """Bytes of the fullest GPU at its peak, sampling included."""
        found = self.total()
        return max(found["total"], found.get("rollout", 0.0))


def windows_of(tokens: int) -> tuple[int, ...]:
    """Encoder frames of the windows of a recording of so many audio tokens."""
    whole, rest = divmod(tokens, token_frames(1500))
    return (1500,) * whole + (2 * rest,) * (rest > 0)
