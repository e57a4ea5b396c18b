"""What LoRA takes on one GPU at full size, by how the frozen language model is held: counted, not measured.

    python -m bench.adapters --out bench/results/memory/adapters.md

Forward and backward of one micro-batch run on fake tensors: every storage has its size and nothing is computed. What is
alive is added up op by op. What a kernel allocates inside of itself is not seen; the head's loss says it stays below
0.5 GB, which is added. Nothing here was measured on a GPU: its allocator's fragments and CUDA's context come on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

import afn_kernels as ak
from afn_model import AFNext
from afn_model.config import ModelConfig, preset
from afn_model.train import lora
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.adamw8bit import new_state
from afn_model.train.quantise import quantise
from afn_model.train.sft import select
from afn_model.weights.checkpoint import SkipInit
from bench.memory import counting

BASES = ("bfloat16", "int8", "nf4")
RANK, CONTEXT = 16, 8192
HEAD_LOSS = 0.5e9  # what the head's loss takes inside of itself, by its documentation
GPU = 24e9


def held(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def model_of(config: ModelConfig, base: str, rank: int) -> AFNext:
    """The model with adapters in the language model, as a stage has it."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with SkipInit():
            model = AFNext(config).train()
    finally:
        torch.set_default_dtype(usual)
    if base != "bfloat16":
        quantise(model.language_model, base)
    select(model, ())
    lora.add(model, rank, 2 * rank)
    return model


def step(model: AFNext, context: int) -> None:
    """Forward and backward of the language model on one packed sequence; the frozen encoder has run before it."""
    x_TD = torch.empty(context, model.config.text.width, dtype=model.dtype)
    hidden = model.language_model(x_TD, torch.empty(context), cu_seqlens=torch.empty(2, dtype=torch.int32))
    labels = torch.empty(context, dtype=torch.int64)
    loss = ak.linear_cross_entropy(hidden, model.lm_head.weight, labels, reduction="sum", supervised=context)
    del x_TD, hidden
    loss.backward()


def count(config: ModelConfig, base: str, recompute: str, context: int = CONTEXT, rank: int = RANK) -> dict[str, float]:
    """Bytes by what they are for."""
    with counting(host=0) as live:
        model = model_of(config, base, rank)
        trained = [p for p in model.parameters() if p.requires_grad]
        frozen = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
        checkpoint_blocks(model, recompute)
        live.peak = before = live.now
        step(model, context)
        return {
            "base": held(frozen),
            "adapters": 2 * held(trained),  # with their gradients
            "adamw": 2 * held(trained),
            "adamw8bit": held(t for p in trained for t in new_state(p).values()),
            "step": live.peak - before - held(trained) + HEAD_LOSS,
        }


def table(config: ModelConfig) -> str:
    rows = [
        f"LoRA of rank {RANK} on every linear layer of the language model's blocks, a sequence of {CONTEXT:,} tokens.",
        "GB of 10⁹ bytes, counted by `python -m bench.adapters` on tensors without data. Nothing was measured on a",
        "GPU: CUDA's context and the allocator's fragments, some 1 to 2 GB, come on top. Encoder, adaptor, embeddings",
        "and head are frozen in bfloat16; the encoder has run before and kept nothing.",
        "",
        "| base | recompute | weights | adapters, gradients | moments | activations, working | in all | left of 24 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for base in BASES:
        for recompute in ("none", "selective", "full"):
            found = count(config, base, recompute)
            whole = found["base"] + found["adapters"] + found["adamw"] + found["step"]
            left = f"{(GPU - whole) / 1e9:.1f}" if whole < GPU else "does not fit"
            cells = [found[key] / 1e9 for key in ("base", "adapters", "adamw", "step")]
            numbers = " | ".join(f"{cell:.2f}" for cell in (*cells, whole / 1e9))
            rows.append(f"| {base} | {recompute} | {numbers} | {left} |")
    small = found["adamw8bit"] / 1e9
    rows += ["", f"With `optimiser: adamw8bit` the moments take {small:.2f} GB.", ""]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/memory/adapters.md"))
    arguments = parser.parse_args()
    text = "# LoRA on one GPU\n\n" + table(preset("af-next"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
