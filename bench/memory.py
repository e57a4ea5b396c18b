"""Peak memory of a GPU in an optimiser step of the full model, counted from shapes: nothing is measured.

    python -m bench.memory                          # every stage and layout that is shipped: minutes on one CPU core
    python -m bench.memory --stage mid-2 --layout 8gpu --set ulysses=8 ring=1 recompute=full
    python -m bench.memory --out bench/results/memory/memory.jsonl

The trainer's own ``stage_model`` and ``update`` run on fake tensors in a fake process group: two micro-batches,
clipping and AdamW. Every storage is counted from its allocation to its end, also where FSDP2 empties and refills it.
``FSDPMemTracker`` of PyTorch counts the same, to the byte, where it can be asked; it refuses a second forward of the
model and gathers blocks that are sharded as a group one by one.

What shapes cannot say is the reserve: CUDA's context and NCCL's buffers, matmul workspaces, scratch inside of kernels
(0.5 GB of the loss's logits at most), holes between blocks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools import fake_collectives  # noqa: F401  collectives on fake tensors
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import afn_kernels as ak
from afn_distributed import SequenceParallel
from afn_distributed.process import Process
from afn_distributed.shard import gathered
from afn_kernels import _library, _triton
from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.config import ModelConfig, SpeechConfig
from afn_model.data.loader import GlobalBatch, MicroBatch, Position
from afn_model.files import write_rows, write_text
from afn_model.prompt.batch import IGNORED, Batch
from afn_model.train import host_memory, optimiser_offload
from afn_model.train.asr import ASR, ASRSettings
from afn_model.train.curriculum import Stage, read_curriculum
from afn_model.train.grpo import GRPOSettings
from afn_model.train.optimiser import FiniteCheck
from afn_model.train.run_layout import for_stage, read_layout
from afn_model.train.sft import SFT
from afn_model.train.stage_model import StageModel, stage_model
from afn_model.train.update import collected_together, update

OUT = Path("bench/results/memory/memory.jsonl")
GPU, MOST, RESERVE = 80.0, 76.0, 6.0  # GB: of the GPU, that a shipped layout may take, that shapes do not show
RANKS = {"gpu": 1, "gpu-offload": 1, "8gpu": 8, "128gpu": 128}
MICRO = 2  # micro-batches of a step
HOST = 1 << 16  # elements up to which a new tensor is taken for one of the host: lengths, tables
TEXT, WINDOW, PER_SECOND, SAMPLES = 64, 750, 25, 640  # text tokens of a conversation; audio tokens of 30 s, of 1 s; PCM
LORA = {"rank": 16, "alpha": 32}


@dataclass(frozen=True)
class MemoryCase:
    """A stage on a layout.

    Args:
        stage: with its name in the table.
        layout: name of one that comes with the package.
        shipped: whether it is meant to fit.
    """

    stage: Stage
    layout: str
    shipped: bool = True


def cases() -> list[MemoryCase]:
    """Every stage of the curriculum on every layout, the fine-tunes of docs/training.md, and AF-Whisper's stages."""
    curriculum = read_curriculum("afnext")
    found = []
    for layout in RANKS:
        for stage in curriculum.stages:
            # Weights, gradients and moments of all parameters take 132 GB.
            fits = layout != "gpu" or "language_model" not in stage.modules
            # What does not fit on one GPU otherwise; cot-sft takes what mid-1 does.
            if layout != "gpu-offload" or ("language_model" in stage.modules and stage.name != "cot-sft"):
                found.append(MemoryCase(stage, layout, fits))
    mid, post = curriculum["mid-1"], curriculum["post"]
    short = {"context": 8192, "max_audio": 60.0, "batch_tokens": 131_072}
    adapters = {"trains": ("language_model",), "lora": LORA}
    full = replace(mid, name="finetune 8K", trains=("adaptor", "language_model"), **short)
    found += [MemoryCase(full, layout, layout != "gpu") for layout in ("gpu", "gpu-offload", "8gpu")]
    for layout in ("gpu", "8gpu"):
        found.append(MemoryCase(replace(mid, name="LoRA 8K", **short, **adapters), layout))
        found.append(MemoryCase(replace(mid, name="LoRA 24K", **adapters), layout))
        found.append(MemoryCase(replace(post, name="LoRA post", **adapters), layout))
    speech = read_curriculum("afwhisper")
    return [*found, *(MemoryCase(stage, "8gpu") for stage in speech.stages)]


class MemoryCount(TorchDispatchMode):
    """Bytes of all fake storages that are alive.

    Tensors that come of no fake one are the host's, and are computed as they are: lengths, labels, tables.

    Args:
        host: elements below which a new tensor is taken for one of the host.

    Attributes:
        now, peak: bytes.
        offloaded: bytes of the host that what is offloaded has been given.
    """

    def __init__(self, host: int):
        super().__init__()
        self.host = host
        self.now = self.peak = self.offloaded = 0
        self.sizes: dict[int, int] = {}
        self.elsewhere: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back for the local tensor
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        if not any(isinstance(x, FakeTensor) for x in given) and (given or math.prod(size) < self.host):
            with unset_fake_temporarily():
                return func(*args, **kwargs or {})
        found = func(*args, **kwargs or {})
        if func is not torch.ops.aten.empty_strided.default:  # whole tensors of which DTensor wants the shape alone
            for x in tree_leaves(found):
                if isinstance(x, FakeTensor):
                    self.add(x)
        return found

    def host_memory(self, size: int, device: torch.device) -> Tensor:
        """Takes the place of ``afn_model.train.host_memory.host_memory``: fake too, and not counted with the rest."""
        before, peak = self.now, self.peak
        found = torch.empty(max(size, self.host), dtype=torch.uint8)
        self.elsewhere.append(found)
        self.sizes[found.untyped_storage()._cdata] = 0
        self.now, self.peak, self.offloaded = before, peak, self.offloaded + size
        return found[:size]

    def add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = 0
            weakref.finalize(storage, self.drop, storage._cdata)
            self.resized(storage)

    def resized(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes:
            self.now += storage.nbytes() - self.sizes[storage._cdata]
            self.sizes[storage._cdata] = storage.nbytes()
            self.peak = max(self.peak, self.now)

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def _plain(*_: Any) -> bool:
    """Fake tensors are launched on as ordinary ones are."""
    return True


@contextmanager
def counting(host: int = HOST) -> Iterator[MemoryCount]:
    """Inside, big tensors are fake and counted, and every op takes the path of an eager call of its Triton kernel."""
    memory, resize = MemoryCount(host), torch.UntypedStorage.resize_

    def resize_(storage: torch.UntypedStorage, size: int):
        found = resize(storage, size)
        memory.resized(storage)
        return found

    with ExitStack() as stack:
        for patch in (
            mock.patch.dict(os.environ, TRITON_INTERPRET="1"),
            mock.patch.object(_triton, "as_on_a_gpu", True),
            mock.patch.object(_library, "plain", _plain),
            mock.patch.object(_library.Boundary, "_launch", property(lambda boundary: boundary.op)),
            mock.patch.object(torch.UntypedStorage, "resize_", resize_),
            mock.patch.object(host_memory, "host_memory", memory.host_memory),
            mock.patch.object(optimiser_offload, "host_memory", memory.host_memory),
            ak.prefer("triton"),
            FakeTensorMode(allow_non_fake_inputs=True),
            memory,
        ):
            stack.enter_context(patch)
        yield memory


@contextmanager
def ranks(number: int) -> Iterator[Process]:
    """Rank 0 of so many, whose collectives move nothing; it has the largest shard."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield Process(0, number, 0, torch.device("cpu"), True)
    finally:
        dist.destroy_process_group()


class SilentComm:
    """The first rank of a group whose messages move nothing; buffers are those of ``GroupComm``."""

    def __init__(self, size: int):
        self.rank, self.size, self.sent = 0, size, 0

    def all_to_all(self, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        return send.new_empty(sum(wanted))

    def exchange(self, sends: Any, receives: Any) -> Callable[[], None]:
        held = [tensor.contiguous() for tensor in sends.values()]
        return held.clear

    def gather_objects(self, value: Any) -> list[Any]:
        return [value] * self.size


def packed(config: ModelConfig | SpeechConfig, tokens: int, seconds: float) -> Batch:
    """Conversations about recordings of so many seconds, as many as a bin takes; half of the text is supervised."""
    audio = int(seconds * PER_SECOND)
    ids, labels, samples, windows, lengths = [], [], [], [], []
    left = tokens
    while left:
        heard = max(min(audio, left - TEXT), 0)
        said = min(TEXT, left - heard)
        parts = [WINDOW] * (heard // WINDOW) + [heard % WINDOW] * (heard % WINDOW > 0)
        ids += [config.audio_token_id] * heard + [0] * said
        labels += [IGNORED] * (heard + said - said // 2) + [0] * (said // 2)
        samples += [SAMPLES * part for part in parts]
        windows += [len(parts)] * bool(parts)
        lengths.append(heard + said)
        left -= heard + said
    return Batch(
        input_ids=torch.tensor(ids),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        pcm=torch.empty(len(samples), SAMPLES * WINDOW, dtype=torch.int16),
        samples=torch.tensor(samples),
        windows_per_audio=torch.tensor(windows),
        labels=torch.tensor(labels),
    )


class PolicyUpdate:
    """GRPO's loss of one prompt with all of its answers, each as long as it may be, for ``MICRO`` prompts."""

    def __init__(self, found: StageModel, stage: Stage):
        self.found, self.settings = found, GRPOSettings(**stage.grpo)
        self.batch = packed(found.model.config, int(stage.max_audio * PER_SECOND) + TEXT, stage.max_audio)
        self.answers = [[[0] * self.settings.max_new_tokens] * self.settings.group]

    @property
    def tokens(self) -> int:
        return len(self.batch.input_ids) + self.settings.group * (self.settings.max_new_tokens - 1)

    def updates(self, *_: Any, **__: Any) -> Iterator[list[Callable[[], Tensor]]]:
        yield [self.loss] * MICRO

    def loss(self) -> Tensor:
        model, encoded = self.found.model, None
        if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
            tokens = self.batch.window_tokens.tolist()
            encoded = torch.empty(sum(tokens), model.config.audio.width, dtype=torch.bfloat16), tokens
        logprobs = model.answer_logprobs(self.batch, self.answers, encoded=encoded)
        with torch.no_grad(), self.found.reference_context() as reference:
            other = reference.answer_logprobs(self.batch, self.answers, encoded=encoded)
        return ((logprobs - logprobs.detach()).exp() + (other - logprobs).exp()).sum()


class Observed:
    """A method whose losses note the memory that each leaves for its backward, and the gradients that are there."""

    def __init__(self, method: Any, found: StageModel, memory: MemoryCount):
        self.method, self.found, self.memory = method, found, memory
        self.kept = self.gradients = 0

    def updates(self, *args: Any, **options: Any) -> Iterator[list[Callable[[], Tensor]]]:
        for losses in self.method.updates(*args, **options):
            yield [partial(self.loss, loss) for loss in losses]

    def loss(self, loss: Callable[[], Tensor]) -> Tensor:
        grads = [p.grad for p in self.found.model.parameters() if p.grad is not None]
        grads += getattr(self.found.optimiser, "gradients", {}).values()
        self.gradients = sum(cast(Any, g).to_local().nbytes if isinstance(g, DTensor) else g.nbytes for g in grads)
        found = loss()
        self.kept = self.memory.now
        return found


class Unchecked(FiniteCheck):
    """Fake values are neither finite nor not."""

    def observe(self, *_: Any) -> None:
        pass


def fake_model(method: str) -> AFNext | AFWhisper:
    """The full model that a method trains as it is loaded, in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return AFWhisper(SpeechConfig()) if method == "asr" else AFNext(ModelConfig())
    finally:
        torch.set_default_dtype(before)


def moments(optimiser: torch.optim.Optimizer) -> None:
    """AdamW's state as it is after the first step, where it is not there yet; a fused step allocates nothing else."""
    if isinstance(optimiser, optimiser_offload.OffloadedOptimiser):
        return
    for group in optimiser.param_groups:
        for p in group["params"]:
            zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            optimiser.state[p] = {"step": torch.zeros((), dtype=torch.float32), **zeros}


def count(case: MemoryCase, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The case's row of the table; sizes in GB, 1e9 bytes.

    Args:
        case: the stage and its layout.
        changes: fields of the layout to change.
    """
    stage = replace(case.stage, layout={**case.stage.layout, **(changes or {})})
    layout = for_stage(read_layout(case.layout, changes), stage)
    shared = layout.ulysses * layout.ring if stage.packed else 1
    reference = stage.method == "grpo" and GRPOSettings(**stage.grpo).kl > 0
    with ranks(RANKS[case.layout]) as process, counting() as memory:
        found = stage_model(fake_model(stage.method), stage, layout, process, reference=reference)
        loading = memory.peak
        moments(found.optimiser)
        states = memory.now
        config, row = found.model.config, {}
        if stage.packed:
            sequence = None
            if shared > 1:
                sequence = SequenceParallel(*map(SilentComm, (layout.ulysses, layout.ring, shared)))
            method: Any = SFT(found.model, sp_group=sequence)
            if stage.method == "asr":
                method = ASR(found.model, ASRSettings(**stage.asr))
            micro = [MicroBatch(packed(config, stage.context, stage.max_audio), [], []) for _ in range(MICRO)]
            row["tokens"] = math.ceil(stage.context / shared)
        else:
            method, micro = PolicyUpdate(found, stage), []
            with gathered(found.model):
                row["rollout"] = memory.now
            row["tokens"] = method.tokens
        observed = Observed(method, found, memory)
        memory.peak = memory.now
        step = GlobalBatch(micro, Position(), 0)
        with collected_together():  # a cycle that holds activations would keep them
            update(found, observed, step, rate=0.0, clip=1.0, finite=Unchecked(stage.name), step=0, detailed=False)
        kept = observed.kept - states - observed.gradients
        parts = {
            "states": states,
            "gradients": observed.gradients,
            "activations": kept,
            "working": memory.peak - states - observed.gradients - kept,
        }
        if memory.offloaded:
            row["host"] = round(memory.offloaded / 1e9, 1)
        del found, observed, method
    sizes = {name: round(size / 1e9, 1) for name, size in {"loading": loading, **parts}.items()}
    total = round(memory.peak / 1e9 + RESERVE, 1)
    if "rollout" in row:
        row["rollout"] = round(row["rollout"] / 1e9 + RESERVE, 1)
    method_name = stage.method + (" LoRA" if stage.lora else "")
    names = {"stage": stage.name, "layout": case.layout, "ranks": RANKS[case.layout], "method": method_name}
    run = {"context": stage.context, "recompute": layout.recompute, "ulysses": layout.ulysses, "ring": layout.ring}
    return {**names, **run, **row, **sizes, "reserve": RESERVE, "total": total, "shipped": case.shipped}


DOCUMENT = """# Memory of a GPU with {gpu:g} GB

Counted from shapes by `python -m bench.memory` in an optimiser step of the full model (8.27 G parameters; of method asr
AF-Whisper with its decoder, 1.11 G), two micro-batches of the longest audio, on the fullest GPU; GB of 1e9 bytes.
Nothing was measured. {reserve:g} GB are reserved for CUDA, NCCL, matmul workspaces, scratch of kernels and holes
between blocks; what is shipped takes less
than {most:g}. *Activations* is what a forward leaves for its backward, gathered weights of the embeddings and the head
included; *working* is what comes on top at the peak: gathered blocks, whole gradients on their way, what is
recomputed. Tokens are those of a GPU in one micro-batch: in GRPO one prompt of ten minutes with its answers, all as
long as they may be. *Host* is what is offloaded, to page-locked memory of the host, without a checkpoint's copy.

| {head} |
{rule}
{table}

## Before the first step, and while answers are sampled

Loading is the peak until the weights are sharded: the whole model in bfloat16 and what trains in float32, and in GRPO
the reference. While GRPO samples, every GPU has all weights; a token of keys and values takes {per_token:,} bytes.

| stage | layout | loading | sampling, without keys and values | tokens of keys and values that fit |
|---|---|---|---|---|
{before}
"""
HEAD = (
    "stage | layout | GPUs | method | recomputed | sequence shared by | tokens | weights and moments | gradients "
    "| activations | working | reserve | **total** | host | fits"
)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as a document."""
    config = ModelConfig().text
    per_token = 2 * 2 * config.layers * config.kv_heads * config.head_dim
    table, before = [], []
    for x in rows:
        ways = [f"{name} {x[name]}" for name in ("ulysses", "ring") if x[name] > 1 and "sft" in x["method"]]
        sizes = " | ".join(f"{x[name]:.1f}" for name in ("states", "gradients", "activations", "working", "reserve"))
        fits = ("yes" if x["total"] < MOST else "no") + ("" if x["shipped"] else ", not shipped")
        table.append(
            f"| {x['stage']} | {x['layout']} | {x['ranks']} | {x['method']} | {x['recompute']} | "
            f"{', '.join(ways) or '-'} | {x['tokens']:,} | {sizes} | **{x['total']:.1f}** | {x.get('host', '-')} | "
            f"{fits} |"
        )
        sampling = "- | -"
        if "rollout" in x:
            sampling = f"{x['rollout']:.1f} | {max(0, int((MOST - x['rollout']) * 1e9 / per_token)):,}"
        before.append(f"| {x['stage']} | {x['layout']} | {x['loading']:.1f} | {sampling} |")
    return DOCUMENT.format(
        gpu=GPU,
        most=MOST,
        reserve=RESERVE,
        head=HEAD,
        rule="|---" * (HEAD.count("|") + 1) + "|",
        table="\n".join(table),
        before="\n".join(before),
        per_token=per_token,
    )


def read(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a file by stage and layout."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {(row["stage"], row["layout"]): row for row in lines}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", help="only this one")
    parser.add_argument("--layout", choices=list(RANKS), help="only this one")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other fields of the layout")
    parser.add_argument("--out", type=Path, help="write PREFIX.jsonl and PREFIX.md; rows of other cases stay")
    args = parser.parse_args(arguments)
    changes = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in args.set)}
    everything, rows = {(case.stage.name, case.layout): case for case in cases()}, {}
    for key, case in everything.items():
        if args.stage in (None, key[0]) and args.layout in (None, key[1]):
            rows[key] = count(case, changes)
            print(rows[key], file=sys.stderr, flush=True)
    print(markdown(list(rows.values())))
    if args.out:
        rows = {**(read(args.out) if args.out.is_file() else {}), **rows}
        ordered = [rows[key] for key in everything if key in rows]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_rows(args.out.with_suffix(".jsonl"), ordered)
        write_text(args.out.with_suffix(".md"), markdown(ordered))


if __name__ == "__main__":
    main()
