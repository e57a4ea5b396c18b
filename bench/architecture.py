"""The picture at the top of the README: a recording on its way to words, with what runs as an op of ours in colour.

python -m bench.architecture RECORDING --model runs/demo --question "What is said?" --out docs/architecture.png

Waveform, log-mel and answer are those of the recording and the model; shapes are those of AF-Next.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import afn_kernels as ak
from afn_model import SamplingParams, Session, load_audio
from afn_model.plot_style import COLOURS, GREY, GRID, INK, RULE, plotting

KINDS = {  # colour of an op by what bounds it on a GPU
    "memory": (COLOURS[3], INK, "limited by memory"),
    "attention": (COLOURS[0], "white", "attention"),
    "product": (COLOURS[2], "white", "fused with a matrix product"),
    "": (GRID, INK, "plain PyTorch"),
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
    content = [{"type": "audio", "path": str(args.recording)}, {"type": "text", "text": args.question}]
    (answer,) = Session(args.model).answer([{"role": "user", "content": content}], SamplingParams(max_new_tokens=32))
    draw(load_audio(args.recording), args.question, answer.text, args.out)
    print(f"{args.out}: {args.question} {answer.text}")


def draw(pcm: torch.Tensor, question: str, answer: str, file: Path) -> None:
    """Writes the picture for samples [n] at 16 kHz."""
    width = LEFT + len(STAGES) * (WIDTH + GAP) + 1.75
    with plotting() as plt:
        figure = plt.figure(figsize=(width, 3.1))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, 3.1))
        axes.axis("off")
        recording(figure, axes, pcm, width)
        for index, stage in enumerate((*STAGES, None)):
            x = LEFT + index * (WIDTH + GAP)
            axes.annotate("", (x, 1.75), (x - GAP, 1.75), arrowprops={"arrowstyle": "-|>", "color": GREY})
            if stage:
                box(axes, x, *stage)
        axes.text(x + 0.08, 1.95, textwrap.fill(question, 20), fontsize=10, va="bottom", color=GREY)
        axes.text(x + 0.08, 1.75, textwrap.fill(f"“{answer}”", 16), fontsize=13, va="top", weight="bold")
        legend(axes)
        figure.savefig(file)
        plt.close(figure)


def recording(figure: Figure, axes: Axes, pcm: torch.Tensor, width: float) -> None:
    """The waveform above its log-mel, on the left."""
    mel = ak.log_mel(torch.nn.functional.pad(pcm, (0, -len(pcm) % 160))[None])[0]
    wave = figure.add_axes((0.12 / width, 1.95 / 3.1, (LEFT - GAP - 0.2) / width, 0.7 / 3.1))
    wave.plot(pcm.numpy(), color=GREY, linewidth=0.3)
    wave.set_xlim(0, len(pcm))
    picture = figure.add_axes((0.12 / width, 0.8 / 3.1, (LEFT - GAP - 0.2) / width, 1.05 / 3.1))
    picture.imshow(mel.numpy(), origin="lower", aspect="auto", cmap="magma")
    for each in (wave, picture):
        each.axis("off")
    axes.text(0.12, 2.75, f"a recording, {len(pcm) / 16_000:.1f} s", fontsize=10, weight="bold")


def box(axes: Axes, x: float, title: str, size: str, ops: tuple[tuple[str, str], ...]) -> None:
    """A stage of the model at ``x`` with its ops."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, 0.68), WIDTH, 1.97, boxstyle=style, facecolor="white", edgecolor=RULE))
    axes.text(x + WIDTH / 2, 2.48, title, ha="center", va="center", fontsize=10, weight="bold")
    axes.text(x + WIDTH / 2, 0.54, size, ha="center", va="center", fontsize=8, color=GREY)
    for row, (name, kind) in enumerate(ops):
        colour, ink, _ = KINDS[kind]
        y, inner = 1.96 - row * (HEIGHT + 0.06), WIDTH - 0.16
        axes.add_patch(FancyBboxPatch((x + 0.08, y), inner, HEIGHT, boxstyle=style, facecolor=colour, linewidth=0))
        axes.text(x + WIDTH / 2, y + HEIGHT / 2, name, ha="center", va="center", fontsize=8.5, color=ink)


def legend(axes: Axes) -> None:
    x = LEFT
    for colour, _, meaning in KINDS.values():
        axes.add_patch(FancyBboxPatch((x, 0.14), 0.2, 0.16, boxstyle="round,pad=0", facecolor=colour, linewidth=0))
        axes.text(x + 0.28, 0.22, meaning, va="center", fontsize=8.5)
        x += 2.4


if __name__ == "__main__":
    main()
