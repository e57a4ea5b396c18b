"""The time of an optimiser step: kernels, messages that nothing hides, decoding of audio and of answers. An estimate.

A forward or backward takes what its kernels take, on the slowest rank of a sequence group, plus what of the messages
the kernels beside them do not hide. Weights are gathered one unit ahead and gradients summed one unit behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from afn_model.config import TextConfig
from afn_model.train.account import Account, Unit
from afn_model.train.flops import head, language_model_linear
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.rates import Rates

LAUNCHES = {"forward": 18, "backward": 40, "adapter": 5}  # kernels of a decoder layer, and of each of its adapters
CODED = 16.0  # bytes moved to decode a weight of few bits before its product, assumed
CODED_FP8 = 24.0  # bytes moved to code a float32 weight in FP8 before it is gathered, counted from its ops
ADAPTED = 7  # linear layers of a decoder layer


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of an optimiser step.

    Args:
        compute: of kernels, on the slowest rank.
        exposed: of messages that no kernel hides.
        sampling: of GRPO's answers.
        other: optimiser, the sum over copies of the weights, waiting for other groups.
        data: that decoding of audio takes longer than all of that.
    """

    compute: float
    exposed: float
    sampling: float
    other: float
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.sampling + self.other + self.data


class TimedStep(Protocol):
    """The time of a step at some rates, which may be others."""

    rates: Rates

    def step(self) -> StepSeconds: ...

    def at(self, rates: Rates) -> Any: ...


def layer_products(text: TextConfig) -> float:
    """FLOPs of a token in the linear layers of one decoder layer."""
    return language_model_linear(text) / text.layers


def quantised_bytes(text: TextConfig, *, size: int, backward: bool, trains: bool) -> float:
    """Bytes of a token that quantising moves in a layer: inputs; in a backward gradients, and both across tokens."""
    attended = text.heads * text.head_dim
    inputs = 2 * text.width + attended + text.ffn
    outputs = attended + 2 * text.kv_heads * text.head_dim + 2 * text.width + 2 * text.ffn
    return (size + 1.0) * ((outputs + trains * (outputs + inputs)) if backward else inputs)


def layer_bytes(text: TextConfig, *, lora: bool = False) -> float:
    """Bytes of a token that a layer's element-wise kernels move; an adapter's sum reads two and writes two."""
    found = 16.0 * text.width + 4 * (text.heads + text.kv_heads) * text.head_dim + 6 * text.ffn
    if lora:
        found += 8 * (3 * text.width + 2 * text.kv_heads * text.head_dim + 2 * text.ffn)
    return found


class StepTime:
    """Of one stage; ``account`` has its shapes.

    Args:
        account: of a typical micro-batch.
        rates: of GPU and links.
        micro_batches: of a step and sequence group; prompts of a rank in GRPO and DPO.
        audio: seconds of audio of each.
    """

    def __init__(self, account: Account, rates: Rates, micro_batches: int, audio: float):
        self.account, self.rates, self.micro_batches, self.audio = account, rates, micro_batches, audio
        self.text, self.mode, self.units, self.load = account.text, account.mode, account.units, account.load
        self.lora = self.units.ranks > 0
        self.trains_layers = any(not name.startswith("encoder.") for name in self.units.inputs) and not self.lora

    def at(self, rates: Rates) -> StepTime:
        """The same at other rates."""
        return type(self)(self.account, rates, self.micro_batches, self.audio)

    @property
    def micro_tokens(self) -> int:
        """Of a micro-batch."""
        return self.account.micro.tokens

    def attention(self, *, backward: bool) -> np.ndarray:
        """[ranks] seconds of one layer's attention, with what of the ring's messages it does not hide."""
        a, load, text = self.rates, self.load, self.text
        ring = load.plan.ring > 1 or self.account.micro.answers > 0
        forward = a.own_attention if ring else a.attention
        rate = (a.own_attention_backward if ring else a.attention_backward) if backward else forward
        flops = text.head_dim * (10 if backward else 4)
        rows = load.shard_rows * load.q * text.head_dim
        # A ring adds to float32 partial outputs; its backward adds each step's gradient of q to a float32 sum.
        more = rows * (12 if backward else 8) / a.hbm if load.plan.ring > 1 else 0 * rows
        link = a.nvlink if load.plan.ranks <= a.node else a.network
        busy = flops * load.attended(0) / rate + more
        total = 0 * busy
        for offsets in load.steps():
            sent = sum(load.key_bytes(t) for t in offsets) * (1 + (4 / load.element_size if backward else 0))
            total = total + np.maximum(busy, a.message + sent / link) + 3 * sent / a.hbm
            busy = sum(flops * load.attended(t) / rate for t in offsets) + more * len(offsets)
        total = total + busy
        if load.plan.ulysses > 1:
            sent = sum(load.head_bytes())
            total = total + 2 * a.message + sent / a.nvlink + 2 * sent / a.hbm
        return total

    def decoding(self) -> float:
        """Seconds to decode a layer's weights from the few bits of a base under adapters, or to code them in FP8."""
        account, bytes_ = self.account, 0.0
        if self.fp8:
            gathered = account.sharded and not (self.lora and account.whole)
            # What was gathered in FP8 is turned for the backward.
            bytes_ = CODED_FP8 / account.shard + 1 if gathered else account.size + 1.0
        elif account.stage.lora and account.stage.lora.get("base"):
            bytes_ = CODED
        return bytes_ * layer_products(self.text) / 2 / self.rates.hbm if bytes_ else 0.0

    @property
    def fp8(self) -> bool:
        return self.account.layout.fp8

    @property
    def products(self) -> float:
        """FLOP/s of the products of a decoder layer."""
        return self.rates.fp8 if self.fp8 else self.rates.matmul

    def token_seconds(self, times: float, products: float) -> float:
        """Of a layer's products and of its element-wise kernels, so many times, for a token."""
        text, a = self.text, self.rates
        return products * layer_products(text) / self.products + times * layer_bytes(text, lora=self.lora) / a.hbm

    def quantising(self, *, backward: bool) -> float:
        """Seconds to quantise what a layer multiplies of a token in FP8."""
        if not self.fp8:
            return 0.0
        moved = quantised_bytes(self.text, size=self.account.size, backward=backward, trains=self.trains_layers)
        return moved / self.rates.hbm

    def forward_layer(self) -> np.ndarray:
        """[ranks] seconds without attention."""
        each = self.token_seconds(1, 1) + self.quantising(backward=False)
        return self.account.rows * each * self.rates.block + self.decoding()

    def backward_layer(self) -> np.ndarray:
        """[ranks] seconds without attention: gradients of inputs, of weights where they train, recomputation."""
        a, rows, text = self.rates, self.account.rows, self.text
        found = rows * (self.token_seconds(2, 1 + self.trains_layers) + self.quantising(backward=True))
        opened = 4.0 * text.width * text.ffn / self.products + 6 * text.ffn / a.hbm
        if self.mode == "selective":
            found = found + rows * opened + 0.6 * self.decoding()  # gate and up
        if self.mode == "full":  # the product that nothing is kept of is left out
            found = found + self.forward_layer() / a.block - rows * 2.0 * text.width * text.ffn / self.products
        return found * a.block + self.decoding()

    def encode(self) -> np.ndarray:
        """[ranks] seconds of the encoder's forward."""
        a, audio, frames = self.rates, self.account.config.audio, self.account.frames
        products = 2.0 * audio.layers * (4 * audio.width**2 + 2 * audio.width * audio.ffn)
        squares = 1500.0 * frames  # windows of 30 s; of shorter ones less
        attention = 4.0 * audio.layers * audio.width * squares / a.encoder_attention
        return frames * (products / a.matmul + audio.layers * 44 * audio.width / a.hbm) + attention

    def link_seconds(self, size: float) -> float:
        """Of an all-gather or reduce-scatter of so many bytes over the ranks that share the weights."""
        n, a = self.account.shard, self.rates
        if n == 1 or not size:
            return 0.0
        return a.message * (1 + math.log2(n) / 4) + size * (n - 1) / n / (a.nvlink if n <= a.node else a.across)

    def gather(self, unit: Unit) -> float:
        return self.link_seconds(self.account.gathered(unit))

    def reduce(self, unit: Unit) -> float:
        return self.link_seconds(4.0 * unit.trained if self.account.sharded else 0.0)

    def head(self, passes: int) -> float:
        each = self.account.micro.supervised / self.load.plan.ranks
        return passes * each * head(self.text) / self.rates.matmul

    def beside(self, kernels: float, messages: float) -> tuple[float, float]:
        """Seconds of kernels beside messages, which take SMs from them, and of messages that they do not hide."""
        hidden = min(kernels, messages)
        return kernels + self.rates.sms * hidden, max(0.0, messages - kernels)

    def host(self, *parts: str) -> float:
        """Seconds in which the host launches a decoder layer's kernels."""
        adapters = ADAPTED * LAUNCHES["adapter"] if self.lora else 0
        return self.rates.launch * sum(LAUNCHES[part] + adapters for part in parts)

    def forward(self) -> tuple[float, float]:
        """Seconds of kernels and of exposed messages of one forward, the loss not included."""
        units, text = self.units, self.text
        exposed = self.gather(units.root) + (self.gather(units.encoder[0]) if units.encoder else 0.0)
        messages = sum(self.gather(unit) for unit in units.encoder[1:]) + sum(map(self.gather, units.layers[:1]))
        encoded, more = self.beside(float(self.encode().max()), messages)
        exposed += more
        layer = max(float((self.forward_layer() + self.attention(backward=False)).max()), self.host("forward"))
        ahead = self.gather(units.layers[0]) if units.layers else 0.0
        layer, more = self.beside(layer, ahead)
        exposed += more * text.layers
        if self.load.plan.ranks > 1:  # embeddings of audio to their tokens
            exposed += self.rates.message + float(self.account.frames.max()) * text.width / self.rates.nvlink
        compute = encoded + layer * text.layers
        return compute, exposed + max(0.0, self.moved()[0] - compute)

    def moved(self) -> tuple[float, float]:
        """Seconds in which what is offloaded leaves in a forward, and comes and leaves in its backward."""
        account = self.account
        inputs = float(account.offloaded().max())
        sums = 4.0 * self.units.trained if account.sums_on_host else 0.0
        return inputs / self.rates.pcie, (inputs + sums) / self.rates.pcie

    def states_moved(self) -> float:
        """Seconds in which an offloaded optimiser's states come in a step, while those before them leave."""
        account = self.account
        if not account.layout.offload_optimiser:
            return 0.0
        kinds = account.host()
        size = sum(kinds.get(name, 0.0) for name in ("float32 weights", "moments", "gradients"))
        return (size + account.staging() / 2) / self.rates.pcie

    def transfers(self) -> float:
        """Seconds of a step in which the link to the host is busy, hidden or not."""
        return self.passes * sum(self.moved()) + self.states_moved()

    def backward(self) -> tuple[float, float]:
        """Seconds of kernels and of exposed messages of one backward with its recomputation."""
        units, text = self.units, self.text
        again = self.attention(backward=False) if self.mode == "full" else 0.0
        layer = float((self.backward_layer() + self.attention(backward=True) + again).max())
        layer = max(layer, self.host("backward", *(["forward"] if self.mode == "full" else [])))
        messages = self.gather(units.layers[0]) + self.reduce(units.layers[0]) if units.layers else 0.0
        layer, more = self.beside(layer, messages)
        compute, exposed = layer * text.layers, more * text.layers + self.reduce(units.root)
        if units.trains_encoder:
            times = 2 + (self.mode != "none")
            messages = sum(self.gather(unit) + self.reduce(unit) for unit in units.encoder)
            encoded, more = self.beside(times * float(self.encode().max()), messages)
            compute, exposed = compute + encoded, exposed + more
        return compute, exposed + max(0.0, self.moved()[1] - compute)

    @property
    def passes(self) -> int:
        """Forwards with a backward in the optimiser steps on a batch."""
        stage = self.account.stage
        return self.micro_batches * (GRPOSettings(**stage.grpo).updates if stage.method == "grpo" else 1)

    def sampling(self) -> float:
        """Seconds in which a rank samples all its answers of a step, with the gather of the weights."""
        settings, a, account = GRPOSettings(**self.account.stage.grpo), self.rates, self.account
        together = min(settings.prompts, self.micro_batches)
        text = self.text
        weights = self.units.frozen + account.size * self.units.trained
        per_token = 2 * text.layers * text.kv_heads * text.head_dim * account.size
        longest = min(1.0, 2 * a.answer) * settings.max_new_tokens  # the longest of the answers sampled together
        cache = together * (account.micro.lengths[0] + settings.group * longest / 2) * per_token
        prompts = together * account.micro.lengths[0]
        prefill = prompts * layer_products(self.text) * text.layers / self.products + together * float(
            self.encode().max()
        )
        each = prefill + longest * max(a.token, (weights + cache) / a.hbm)
        return math.ceil(self.micro_batches / together) * each + sum(self.gather(u) for u in self.units.units)

    def step(self) -> StepSeconds:
        account, a, stage = self.account, self.rates, self.account.stage
        compute, exposed = map(sum, zip(self.forward(), self.backward(), strict=True))
        compute += self.head(4 if not stage.packed else 2 + bool(self.units.head))
        sampled, reference = 0.0, 0.0
        if stage.method == "grpo":
            sampled = self.sampling()
        if account.states()["reference"] or (not stage.packed and self.lora):
            reference = self.forward()[0] + self.head(1)
        compute = compute * self.passes + reference * self.micro_batches
        exposed *= self.passes
        copies = account.ranks // account.shard
        update = max(32.0 * self.units.trained / account.shard / a.hbm, self.states_moved())
        update += 2 * (copies - 1) / copies * 4 * self.units.trained / account.shard / a.network
        groups = account.ranks // self.load.plan.ranks
        other = update + (a.waiting * (compute + exposed) if groups > 1 else 0.0)
        busy = compute + exposed + sampled + other
        workers = max(account.layout.workers, 1) * self.load.plan.ranks  # ranks of a group share the decoding
        data = self.micro_batches * self.audio / (workers * a.decoded)
        return StepSeconds(compute, exposed, sampled, other, max(0.0, data - busy))

    def tokens(self) -> float:
        """Of a step, all groups together."""
        return self.account.micro.tokens * self.micro_batches * self.account.ranks / self.load.plan.ranks


def band(time: TimedStep) -> tuple[float, float]:
    """Seconds of a step if things go well and badly: each doubt alone, and these added as squares."""
    middle, worse, better = time.step().total, 0.0, 0.0
    for name, ends in time.rates.doubts.items():
        changes = [0.0]
        for value in ends:
            other = time.at(replace(time.rates, **{name: value}))
            changes.append(math.log(other.step().total / middle))
        worse, better = worse + max(changes) ** 2, better + min(changes) ** 2
    return middle * math.exp(-math.sqrt(better)), middle * math.exp(math.sqrt(worse))
