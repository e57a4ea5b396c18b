"""The picture at the top of the README: a recording on its way to words, with what runs as an op of ours in colour.

python -m bench.architecture RECORDING --model runs/demo --question "What is said?" --out docs/architecture.png

Waveform, log-mel and answer are those of the recording and the model; shapes are those of AF-Next.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch

import afn_kernels as ak
from afn_model import AFNext, AFNextProcessor, load_audio

GREY = "#d7dde3"
KINDS = {  # colour of an op by what bounds it on a GPU
    "memory": ("#f2b134", "limited by memory"),
    "attention": ("#0b6e4f", "attention"),
    "product": ("#3d6db5", "fused with a matrix product"),
}
# A stage of the model: its title, what it is at full size, and what it calls from top to bottom: (name, kind).
STAGES = (
    ("features", "128 × 100 / s", (("log_mel", "memory"),)),
    (
        "AF-Whisper × 32",
        "1280 wide, 30 s windows",
        (("layer_norm", "memory"), ("attention", "attention"), ("bias_gelu", "memory")),
    ),
    ("tokens of 40 ms", "25 / s, 45,000 in 30 min", (("pool_norm", "memory"), ("rote", "memory"))),
    ("adaptor", "1280 → 3584", (("Linear GELU Linear", ""), ("merge_embeddings", "memory"))),
    (
        "language model × 28",
        "3584 wide, 128K tokens",
        (("rms_norm", "memory"), ("rotary", "memory"), ("attention", "attention"), ("swiglu", "memory")),
    ),
    (
        "loss or next token",
        "151,672 of them",
        (("linear_cross_entropy", "product"), ("linear_logprob", "product"), ("decode_attention", "attention")),
    ),
)
WIDTH, GAP, LEFT, HEIGHT = 1.72, 0.3, 2.15, 0.33


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="a model folder, such as the demo's run folder")
    parser.add_argument("--question", default="What is said?")
    parser.add_argument("--out", type=Path, default=Path("docs/architecture.png"))
    args = parser.parse_args(argv)
    answer = ask(args.model, args.recording, args.question)
    draw(load_audio(args.recording), args.question, answer).savefig(args.out, dpi=150, bbox_inches="tight")
    print(f"{args.out}: {args.question} {answer}")


def ask(model: Path, recording: Path, question: str) -> str:
    """The model's answer about the recording."""
    processor = AFNextProcessor.from_pretrained(model)
    content = [{"type": "audio", "path": str(recording)}, {"type": "text", "text": question}]
    batch = processor([{"role": "user", "content": content}])
    return processor.decode(AFNext.from_pretrained(model).generate(batch, max_new_tokens=32)[0])


def draw(pcm: torch.Tensor, question: str, answer: str) -> plt.Figure:
    """The figure for samples [n] at 16 kHz."""
    width = LEFT + len(STAGES) * (WIDTH + GAP) + 1.75
    figure = plt.figure(figsize=(width, 3.1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, 3.1))
    axes.axis("off")
    recording(figure, axes, pcm, width)
    x = LEFT
    for stage in STAGES:
        box(axes, x, *stage)
        axes.annotate("", (x, 1.75), (x - GAP, 1.75), arrowprops={"arrowstyle": "-|>", "color": "#4c5660"})
        x += WIDTH + GAP
    axes.annotate("", (x, 1.75), (x - GAP, 1.75), arrowprops={"arrowstyle": "-|>", "color": "#4c5660"})
    axes.text(x + 0.08, 1.95, textwrap.fill(question, 20), fontsize=10, va="bottom", color="#4c5660")
    axes.text(x + 0.08, 1.75, textwrap.fill(f"“{answer}”", 16), fontsize=13, va="top", weight="bold")
    legend(axes)
    return figure


def recording(figure: plt.Figure, axes: plt.Axes, pcm: torch.Tensor, width: float) -> None:
    """The waveform above its log-mel, on the left."""
    mel = ak.log_mel(torch.nn.functional.pad(pcm, (0, -len(pcm) % 160))[None])[0]
    wave = figure.add_axes((0.12 / width, 1.95 / 3.1, (LEFT - GAP - 0.2) / width, 0.7 / 3.1))
    wave.plot(pcm.numpy(), color="#4c5660", linewidth=0.3)
    wave.set_xlim(0, len(pcm))
    picture = figure.add_axes((0.12 / width, 0.8 / 3.1, (LEFT - GAP - 0.2) / width, 1.05 / 3.1))
    picture.imshow(mel.numpy(), origin="lower", aspect="auto", cmap="magma")
    for each in (wave, picture):
        each.axis("off")
    axes.text(0.12, 2.75, f"a recording, {len(pcm) / 16_000:.1f} s", fontsize=10, weight="bold")


def box(axes: plt.Axes, x: float, title: str, size: str, ops: tuple[tuple[str, str], ...]) -> None:
    """A stage of the model at ``x`` with its ops."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, 0.68), WIDTH, 1.97, boxstyle=style, facecolor="#f5f7f9", edgecolor="#b8c1ca"))
    axes.text(x + WIDTH / 2, 2.48, title, ha="center", va="center", fontsize=10, weight="bold")
    axes.text(x + WIDTH / 2, 0.54, size, ha="center", va="center", fontsize=8, color="#4c5660")
    for row, (name, kind) in enumerate(ops):
        colour = KINDS[kind][0] if kind else GREY
        y = 1.96 - row * (HEIGHT + 0.06)
        axes.add_patch(FancyBboxPatch((x + 0.08, y), WIDTH - 0.16, HEIGHT, boxstyle=style, facecolor=colour, linewidth=0))
        ink = "white" if kind in ("attention", "product") else "black"
        axes.text(x + WIDTH / 2, y + HEIGHT / 2, name, ha="center", va="center", fontsize=8.5, color=ink)


def legend(axes: plt.Axes) -> None:
    x = LEFT
    for colour, meaning in (*KINDS.values(), (GREY, "plain PyTorch")):
        axes.add_patch(FancyBboxPatch((x, 0.14), 0.2, 0.16, boxstyle="round,pad=0", facecolor=colour, linewidth=0))
        axes.text(x + 0.28, 0.22, meaning, va="center", fontsize=8.5)
        x += 2.4


if __name__ == "__main__":
    main()
