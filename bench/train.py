"""Training steps at the size of Audio Flamingo Next: ours against transformers with SDPA and with Liger, JSON lines.

    python -m bench.train [--device cuda] [--cases pre-1 full-24k] [--variants ours liger] [--limit 460] [--out FILE]

A step is forward, backward, clipping and AdamW (fused, moments in the weights' dtype) on one packed sequence of a
realistic mix of lengths: seeded noise for audio, random token ids, random weights made on the device. It ends with a
synchronisation. MFU counts what the batch needs (afn_model.train.flops), the same for everyone; activations computed
again and padding do not count. Batches of ours come from workers in int16, and waiting for them counts; a peer's are
prepared before the clock starts, its log-mel included. Full training takes as many language-model layers as fit the
GPU; where a peer fits fewer, ours is measured at its depth too. On a CPU, or with another preset, shapes are cut and
the record says so.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afn_model import host
from afn_model.files import write_json, write_rows
from afn_model.prompt.batch import Batch
from afn_model.train.flops import batch_flops, language_model_linear, peak, step_work
from afn_model.train.log import memory
from afn_model.train.profiler import kernels
from bench.record import why
from bench.timing import quantile
from bench.train_models import CASES, VARIANTS, Batches, TrainCase, configuration

WARM, STEPS, PROFILED, WORKERS = 2, 10, 2, 2
KEY = ("case", "variant", "preset", "text_layers")
GROUPS = {  # of kernels, by their names; the first that matches counts
    "attention": r"attn|attention|flash|fmha|softmax",
    "cross-entropy": r"cross_entropy|nll|log_softmax|linear_ce",
    "matrix products": r"gemm|nvjet|cutlass|cublas|xmma|wgmma|splitk|(^|::)(mm|bmm|addmm|linear|matmul)\b|conv",
    "optimiser": r"adam|multi_tensor|lpnorm|foreach",
    "norms, activations, rotary": r"norm|silu|swiglu|gelu|rotary|rope|rote|merge_embeddings|embedding|index",
    "copies": r"memcpy|memset|copy|fill|cat",
}


def measured(case: TrainCase, variant: str, name: str, layers: int | None, device: str, seconds: float = 90.0) -> dict:
    """One record: a case, a variant, and a number of language-model layers.

    Raises:
        Absent: the variant is not installed.
        torch.OutOfMemoryError: it does not fit.
    """
    config = configuration(name, layers)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    made = VARIANTS[variant](config, case, device)
    trained = [p for p in made.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    workers = WORKERS if device == "cuda" else 0
    batches = iter(torch.utils.data.DataLoader(Batches(config, case), batch_size=None, num_workers=workers))

    def step(given: Any) -> Tensor:
        loss = made.step(given)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        wait()
        return loss

    def one() -> tuple[float, float, Batch, float]:
        """Seconds of a step and of waiting in it, its batch and its loss."""
        began = time.perf_counter()
        batch = Batch(**next(batches))
        waited = time.perf_counter() - began
        given = made.prepare(batch)
        wait()
        if variant != "ours":
            began, waited = time.perf_counter(), 0.0
        loss = step(given)
        return time.perf_counter() - began, waited, batch, float(loss)

    memory(torch.device(device))
    first_step = one()[0]
    for _ in range(WARM - 1):
        one()
    done, stop = [], time.perf_counter() + seconds
    while len(done) < STEPS and (len(done) < 3 or time.perf_counter() < stop):
        done.append(one())
    held = memory(torch.device(device))
    last = done[-1][3]
    if not math.isfinite(last):
        raise RuntimeError(f"the loss of {variant} is {last}, so its times say nothing")
    work = step_work(config, [batch for _, _, batch, _ in done], case.trains)
    total, times = sum(x[0] for x in done), [x[0] for x in done]
    most = peak(device)
    return {
        "case": case.name,
        "variant": variant,
        "preset": name,
        "text_layers": config.text.layers,
        "encoder_layers": config.audio.layers,
        "trains": list(case.trains),
        "trained_parameters": sum(p.numel() for p in trained),
        "context": case.context,
        "recompute": case.recompute,
        "dtype": str(trained[0].dtype).removeprefix("torch."),
        "steps": len(done),
        "tokens": int(work["tokens"] / len(done)),
        "supervised": round(work["supervised"] / len(done), 1),
        "audio_seconds": round(work["audio_seconds"] / len(done), 1),
        "step_ms": round(1e3 * quantile(times, 0.5), 2),
        "step_ms_p20": round(1e3 * quantile(times, 0.2), 2),
        "step_ms_p80": round(1e3 * quantile(times, 0.8), 2),
        "first_step_s": round(first_step, 2),
        "tokens_per_s": round(work["tokens"] / total, 1),
        "audio_hours_per_s": round(work["audio_seconds"] / 3600 / total, 5),
        "tflops": round(work["flops"] / total / 1e12, 4),
        "mfu": round(work["flops"] / total / most, 4) if most else None,
        "memory_gb": round(held / 1e9, 2),
        "data_wait": round(sum(x[1] for x in done) / total, 4) if variant == "ours" else None,
        "loss": round(last, 4),
        "flops": {k: round(v / 1e12, 4) for k, v in batch_flops(config, done[-1][2], case.trains).items()},
        "goal": case.goal if most else None,
        "note": made.note,
        **breakdown(step, [made.prepare(Batch(**next(batches))) for _ in range(PROFILED)]),
    }


def breakdown(step: Callable[[Any], object], given: list) -> dict[str, Any]:
    """Milliseconds per step by kind of kernel, and the kernels that take most of it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with torch.profiler.profile(activities=activities, acc_events=True) as found:
        for each in given:
            step(each)
    rows, groups = kernels(found), dict.fromkeys([*GROUPS, "other"], 0.0)
    for row in rows:
        group = next((g for g, pattern in GROUPS.items() if re.search(pattern, row["name"], re.I)), "other")
        groups[group] += row["ms"] / len(given)
    top = [
        {"name": x["name"][:120], "calls": x["calls"] / len(given), "ms": round(x["ms"] / len(given), 3)}
        for x in rows[:15]
    ]
    return {"kernel_ms": {group: round(ms, 3) for group, ms in groups.items()}, "kernels": top}


def deepest(case: TrainCase, name: str, memory: float) -> int:
    """Language-model layers that should fit a GPU of so many bytes when everything trains in bf16.

    8 bytes per parameter (weight, gradient, two moments). Activations by hand: about 180 KB per token and layer of the
    language model and 41 KB per frame and layer of the encoder, or the blocks' inputs where they are made again.
    """
    config = configuration(name, None)
    text, audio, again = config.text, config.audio, case.recompute == "full"
    per_token = 4 * text.width if again else 18 * text.width + 6 * text.ffn
    per_frame = 4 * audio.width if again else 16 * audio.width + 4 * audio.ffn
    encoder = 12 * audio.width**2 * audio.layers
    fixed = 8 * (encoder + 2 * text.vocab_size * text.width) + 2 * case.context * audio.layers * per_frame
    fixed += case.context * (18 * text.width + 6 * text.ffn) + 4e9
    layer = 4 * language_model_linear(replace(text, layers=1)) + case.context * per_token
    return max(1, min(text.layers, int((0.92 * memory - fixed) / layer)))


def alone(case: TrainCase, variant: str, name: str, layers: int | None, device: str, until: float) -> dict:
    """``measured``, or a record that says why not. On a GPU in a process of its own: Liger patches modules for good."""
    absent = {"case": case.name, "variant": variant, "preset": name}
    absent |= {"text_layers": configuration(name, layers).text.layers, "context": case.context}
    if device != "cuda":
        try:
            return measured(case, variant, name, layers, device, max(0.0, min(90.0, until - time.monotonic())))
        except Exception as error:
            return absent | {"absent": why(error)}
    left = until - time.monotonic()
    if left < 20:
        return absent | {"absent": "no time was left"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        words = [case.name, variant, name, str(layers or 0), str(min(90.0, left / 3)), str(out)]
        command = [sys.executable, "-m", "bench.train", "--alone", *words]
        try:
            done = subprocess.run(command, timeout=left, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return absent | {"absent": f"did not end in {left:.0f} s"}
        if out.exists():
            return absent | json.loads(out.read_text())
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        return absent | {"absent": f"failed with {done.returncode}: {said[:200]}"}


def in_own_process(words: list[str]) -> None:
    """The other side of ``alone``."""
    case, variant, name, layers, seconds, out = words
    case = next(x for x in CASES if x.name == case)
    try:
        record = measured(case, variant, name, int(layers) or None, "cuda", float(seconds))
    except Exception as error:
        record = {"absent": why(error)}
    write_json(out, record)


def compared(case: TrainCase, variants: list[str], name: str, device: str, limit: float) -> Iterator[dict]:
    """Records of a case: ours as deep as it fits, every peer there or as deep as it fits, and ours at that depth."""
    end, layers = time.monotonic() + limit, configuration(name, None).text.layers
    if device == "cuda" and "language_model" in case.trains:
        layers = deepest(case, name, torch.cuda.get_device_properties(0).total_memory)
    seen, start = set(), layers
    for number, variant in enumerate(variants):
        depth, now = start, time.monotonic()
        until = now + (end - now) / (len(variants) - number)
        while True:
            record = alone(case, variant, name, depth, device, until)
            yield record
            if record.get("absent") != "out of memory" or depth == 1:
                break
            depth -= max(1, depth // 4)
        if "absent" not in record:
            seen.add((variant, depth))
            if variant == "ours":
                start = depth
            elif "ours" in variants and ("ours", depth) not in seen:
                seen.add(("ours", depth))
                yield alone(case, "ours", name, depth, device, end)


def line(record: dict) -> str:
    """A record in one line of text."""
    name = f"{record['case']:<10}{record['variant']:<14}{record['text_layers']:>3} layers  "
    if record.get("absent"):
        return f"{name}absent: {record['absent']}"
    mfu = "" if record["mfu"] is None else f"  MFU {record['mfu']:.1%}"
    wait = "" if record["data_wait"] is None else f"  data wait {record['data_wait']:.1%}"
    speed = f"{record['tokens_per_s']:>10,.0f} tokens/s  {record['step_ms']:>10,.1f} ms/step"
    return f"{name}{speed}{mfu}  {record['memory_gb']:.1f} GB{wait}"


def save(path: Path, records: list[dict]) -> None:
    """Replaces what the file holds of the same cases, variants and depths; written whole or not at all."""
    new = {tuple(record.get(k) for k in KEY) for record in records}
    kept = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    kept = [record for record in kept if tuple(record.get(k) for k in KEY) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, kept + records)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[c.name for c in CASES])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--preset", help="af-next on a GPU, tiny on a CPU")
    parser.add_argument("--context", type=int, help="cut the cases to so many tokens; 512 on a CPU")
    parser.add_argument("--limit", type=float, default=460, help="seconds for each case")
    parser.add_argument("--out", type=Path, help="replace records in this file")
    parser.add_argument("--alone", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.alone:
        in_own_process(args.alone)
        return
    if args.device == "cuda" and args.context:
        parser.error("--context is for a CPU: a GPU runs the cases as they are")
    name = args.preset or ("af-next" if args.device == "cuda" else "tiny")
    machine = {"benchmark": "train"}
    for case in (case for case in CASES if case.name in args.cases):
        if args.device == "cpu":
            context = min(args.context or 512, case.context)
            machine["cut"] = f"context {context}, clips of at most {context / 100:g} s: not a GPU figure"
            case = replace(case, context=context, longest=context / 100)
        for record in compared(case, args.variants, name, args.device, args.limit):
            print(line(record), flush=True)
            if args.out:
                save(args.out, [machine | record | host.machine(args.device)])


if __name__ == "__main__":
    main()
