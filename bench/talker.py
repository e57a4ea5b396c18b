"""AF-Next's voice at full size, on paper: parameters, what training takes, and how long a step of speaking takes.

    python -m bench.talker [--out bench/results/simulated/talker.md]

Nothing is measured. Training is ``afn train --plan``; speaking is counted here: bytes of weights, keys and values that
a step reads, FLOPs that it does, and kernels that the host launches, over rates that are assumed. The published numbers
stand beside them: 0.15 s to the first audio and 0.06 s for a token of audio, on an A100.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from afn_model.files import write_text
from afn_model.speech.config import VoiceConfig, voice_preset
from afn_model.train.curriculum import read_curriculum
from afn_model.train.planner import plan
from afn_model.train.run_layout import read_layout
from afn_model.train.step_time import LAUNCHES
from afn_model.train.voice_flops import codec_way_flops, quantizer_flops
from afn_model.train.voice_plan import VoiceSizes, voice_sizes

OUT = Path("bench/results/simulated/talker.md")
FIRST, TOKEN = 0.15, 0.06  # seconds, published, on an A100
REACHED, HALF = 0.8, 0.4  # of the data sheet's bandwidth, of its FLOP/s for a handful of rows; assumed
ALONE = 1e11  # B/s that one multiprocessor reads, 64 bytes a clock; assumed
LAUNCH = 8e-6  # seconds of the host for a kernel without a graph; assumed, as the planner has it
PROMPT, BEFORE = 32, 240  # frames of a speaker prompt of 3 s; positions that a step attends to, on average


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: B/s of memory, FLOP/s in bfloat16 with and in float32 without tensor cores."""

    name: str
    memory: float
    bf16: float
    fp32: float


DEVICES = (Device("A100 80 GB", 2.039e12, 312e12, 19.5e12), Device("H100 80 GB", 3.35e12, 989e12, 67e12))


@dataclass(frozen=True)
class StepPart:
    """Of a step: bytes that are read, FLOPs, whether in float32, kernels, and whether one multiprocessor reads."""

    name: str
    read: float
    flops: float
    float32: bool
    kernels: int
    alone: bool = False

    def seconds(self, device: Device) -> float:
        """On the GPU alone: the longer of traffic and arithmetic."""
        rate = device.fp32 if self.float32 else device.bf16
        return max(self.read / (ALONE if self.alone else REACHED * device.memory), self.flops / (HALF * rate))


def step_parts(config: VoiceConfig, sizes: VoiceSizes, *, rows: int = 1) -> list[StepPart]:
    """A step of ``rows`` streams: text and a frame through the decoder, the head's iterations with the search through
    their levels, and the frame through the codec's decoder.

    The decoder and the head are in bfloat16, codebooks and codec in float32. Each iteration reads all of the head, and
    the levels that it fills, one after another: ``residual_quantize`` has a program for several rows, which a
    multiprocessor runs alone.
    """
    codec, talker = config.codec, config.talker
    assert talker is not None, "the voice has no talker"
    text, places = talker.text, 2 if talker.interleaved else 1
    cached = 2 * 2 * text.layers * text.kv_heads * text.head_dim * BEFORE
    blocks = len(codec.widths) * codec.blocks
    decoder = codec_way_flops(codec) / codec.frame_rate
    return [
        StepPart(
            "decoder blocks",
            2 * sizes.blocks + rows * cached,
            2.0 * places * rows * sizes.blocks,
            False,
            LAUNCHES["forward"] * text.layers,
        ),
        StepPart(
            f"mixture head x {talker.iterations}",
            talker.iterations * 2 * sizes.head,
            talker.iterations * 2.0 * rows * sizes.head,
            False,
            talker.iterations * (4 * talker.head_layers + 16),
        ),
        StepPart(
            f"search through {codec.levels} levels",
            4 * sizes.quantizer,
            rows * quantizer_flops(codec),
            True,
            3 * talker.iterations,
            alone=True,
        ),
        StepPart("codec's decoder", rows * 4 * sizes.decoder, rows * decoder, True, rows * (8 * blocks + 12)),
    ]


def prefill(config: VoiceConfig, sizes: VoiceSizes) -> StepPart:
    """The speaker prompt through the decoder; its codes are kept from before."""
    assert config.talker is not None, "the voice has no talker"
    kernels = LAUNCHES["forward"] * config.talker.text.layers
    return StepPart("speaker prompt", 2 * sizes.blocks, 2.0 * PROMPT * sizes.blocks, False, kernels)


def report() -> str:
    """The document."""
    config = voice_preset("af-next-talker")
    sizes, codec = voice_sizes(config), config.codec
    lines = [
        "# AF-Next's voice at full size: a forecast",
        "",
        "Written by `python -m bench.talker`. Nothing here was measured: shapes are counted, rates are assumed.",
        "",
        "## Parameters",
        "",
        "| part | millions |",
        "|---|---|",
    ]
    named = {
        "talker": sizes.talker,
        "of it decoder blocks": sizes.blocks,
        "of it text embeddings": sizes.embedding,
        "of it mixture head": sizes.head,
        "codec's encoder": sizes.encoder,
        "codec's codebooks": sizes.quantizer,
        "codec's decoder": sizes.decoder,
    }
    lines += [f"| {name} | {value / 1e6:.1f} |" for name, value in named.items()]
    off = sizes.talker / 644e6 - 1
    lines += [
        "",
        f"The paper's talker has 644 million; this one differs by {off:+.1%}.",
        "",
        "## Speaking, one stream",
        "",
    ]
    lines += [
        f"A step makes {1 / codec.frame_rate * 1e3:.0f} ms of sound. A part takes the longer of its traffic at "
        f"{REACHED:.0%} of the memory's data sheet and its FLOPs at {HALF:.0%} of the arithmetic's; without a graph "
        f"the host launches kernels at {LAUNCH * 1e6:.0f} us each, and the GPU waits for it where that takes longer. "
        f"The search reads through one multiprocessor, at {ALONE / 1e9:.0f} GB/s.",
        "",
        "| part of a step | MB read | GFLOP | kernels | " + " | ".join(f"ms, {d.name}" for d in DEVICES) + " |",
        "|---" * (4 + len(DEVICES)) + "|",
    ]
    parts = step_parts(config, sizes)
    for part in parts:
        times = " | ".join(f"{1e3 * part.seconds(device):.2f}" for device in DEVICES)
        lines.append(f"| {part.name} | {part.read / 1e6:,.0f} | {part.flops / 1e9:.2f} | {part.kernels} | {times} |")
    totals, firsts = {}, {}
    host = LAUNCH * sum(part.kernels for part in parts)
    first = prefill(config, sizes)
    for device in DEVICES:
        alone = sum(part.seconds(device) for part in parts)
        totals[device.name] = alone, max(alone, host)
        graph = alone + first.seconds(device)
        firsts[device.name] = graph, max(graph, host + LAUNCH * first.kernels)
    lines += ["", "| | published | " + " | ".join(device.name for device in DEVICES) + " |"]
    lines += ["|---" * (2 + len(DEVICES)) + "|"]
    for what, published, found in (("a step", TOKEN, totals), ("first audio", FIRST, firsts)):
        for number, how in enumerate(("graph", "launches")):
            times = " | ".join(f"{found[device.name][number] * 1e3:.1f} ms" for device in DEVICES)
            lines.append(f"| {what}, {how} | {published * 1e3:.0f} ms | {times} |")
    lines += [
        "",
        "First audio is counted from the first text token: the speaker prompt of 3 s, whose codes are there already, "
        f"and a step; its sound is {codec.look_ahead} samples short of a frame. These are floors, not expectations: "
        "nothing of sampling, of Python between launches, of copies to the host or of other streams is in them, and "
        "where the published times begin and what they contain is not said.",
        "",
        "## Streams together",
        "",
        "Weights are read once for all streams of a step, but those of the codec's decoder, which takes one after "
        "another. Kernels alone, as in a graph.",
        "",
        "| streams | " + " | ".join(f"ms a step, {device.name}" for device in DEVICES) + " |",
        "|---" * (1 + len(DEVICES)) + "|",
    ]
    for rows in (1, 16, 64):
        together = step_parts(config, sizes, rows=rows)
        times = " | ".join(f"{1e3 * sum(part.seconds(device) for part in together):.1f}" for device in DEVICES)
        lines.append(f"| {rows} | {times} |")
    lines += ["", "## Training", ""]
    lines.append(
        "What `afn train --plan --curriculum talk --gpus 8` and `--gpus 128` say, without the lines of assumed rates. "
        "Codec and discriminators are in float32 without tensor cores, also where the talker's stage makes its codes, "
        "which is most of that stage's time."
    )
    for gpus in (8, 128):
        lines += ["", "```", *planned(gpus), "```"]
    return "\n".join(lines) + "\n"


def planned(gpus: int) -> list[str]:
    """The plan's lines that tell of the stages."""
    text = plan(read_curriculum("talk"), read_layout(f"{gpus}gpu"), gpus=gpus)
    kept, rates = [], False
    for line in text:
        rates = rates or line.startswith("assumed")
        if not rates and not line.startswith("  steps and"):
            kept.append(line)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    text = report()
    print(text)
    write_text(args.out, text)


if __name__ == "__main__":
    main()
