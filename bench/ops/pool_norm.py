"""pool_norm where the audio encoder ends: 60 full windows, rotated and not, and windows of every length packed."""

import torch
import torch.nn.functional as F

import afn_kernels as ak
from bench.ops import Workload, normal, sized
from bench.ops import rote as rotation

WIDTH, WINDOW = 1280, 1500


def inputs(windows: int, frames: int = WINDOW, width: int = WIDTH):
    def make(device: str, dtype: torch.dtype):
        return {
            "x": normal(windows, frames, width, device=device, dtype=dtype),
            "weight": normal(width, device=device, dtype=dtype),
            "bias": normal(width, device=device, dtype=dtype),
        }

    return make


LENGTHS = [1 + 997 * n % WINDOW for n in range(120)]  # odd and even ones from 1 to 1500, in no order
FRAMES, TOKENS = sum(LENGTHS), sum(n // 2 for n in LENGTHS)


def packed(device: str, dtype: torch.dtype):
    made = inputs(1, FRAMES)(device, dtype)
    cu = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return made | {"x": made["x"][0], "cu_seqlens": cu.to(device)}


def torchs(i):
    x = i["x"]
    if "cu_seqlens" in i:
        cu = i["cu_seqlens"]
        half = cu.diff() // 2
        pair = torch.arange(TOKENS, device=x.device)
        shift = torch.repeat_interleave(cu[:-1] - 2 * (half.cumsum(0) - half), half, output_size=TOKENS)
        first = shift + 2 * pair
        pooled = (x[first] + x[first + 1]) / 2
    else:
        pooled = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
    return F.layer_norm(pooled, pooled.shape[-1:], i["weight"], i["bias"], 1e-5)


compiled = torch.compile(torchs, dynamic=True)


def least(frames: int, tokens: int, width: int = WIDTH) -> tuple[float, float]:
    """Forward: every frame that has a partner is read, its mean written; backward: those and dy read, dx written."""
    row = width * 2
    return (3 * tokens * row, 3 * tokens * row + frames * row)


class RotatedPool(Workload):
    """Its inputs ``window`` and ``frame`` go into ``rote``."""

    def call(self, inputs, impl: str = "auto"):
        index = {name: inputs[name] for name in ("window", "frame")}
        return (ak.pool_norm(inputs["x"], inputs["weight"], inputs["bias"], rote=index, impl=impl),)


def rotated_inputs(windows: int, frames: int = WINDOW, width: int = WIDTH):
    def make(device: str, dtype: torch.dtype):
        row = torch.arange(windows * (frames // 2), device=device).view(windows, -1)
        return inputs(windows, frames, width)(device, dtype) | {
            "window": row // (frames // 2),
            "frame": row % (frames // 2),
        }

    return make


def in_a_row(pool_norm, rote):
    """The two ops, with their rows in between written and read."""

    def peer(i):
        y = pool_norm(i)
        rotated = rote({"x": y.flatten(0, 1), "window": i["window"].flatten(), "frame": i["frame"].flatten()})
        return rotated.view_as(y)

    return peer


def ours(i):
    return ak.pool_norm(i["x"], i["weight"], i["bias"])


ROTATED_PEERS = {
    "torch": in_a_row(torchs, rotation.torchs(torch.float32)),
    "torch.compile": torch.compile(in_a_row(torchs, rotation.torchs(torch.float32)), dynamic=True),
    "pool_norm, then rote": in_a_row(ours, lambda i: ak.rote(**i)),
}


def cut(length: int, rote: bool, **_) -> dict:
    return {"windows": length} if rote else {"windows": 1, "frames": length}


@sized(cut)
def workload(windows: int = 60, frames: int = WINDOW, width: int = WIDTH, rote: bool = False) -> Workload:
    kind, made = (RotatedPool, rotated_inputs) if rote else (Workload, inputs)
    return kind(
        "pool_norm",
        f"{windows} x {frames} x {width}{', rotated' if rote else ''}",
        made(windows, frames, width),
        ("x", "weight", "bias"),
        least(windows * frames, windows * (frames // 2), width),
        peers=ROTATED_PEERS if rote else {"torch": torchs, "torch.compile": compiled},
    )


WORKLOADS = [
    workload(60),
    workload(1),
    workload(60, rote=True),
    Workload(
        "pool_norm",
        f"{FRAMES} frames of {len(LENGTHS)} windows x {WIDTH}",
        packed,
        ("x", "weight", "bias"),
        least(FRAMES, TOKENS),
        options={"total": TOKENS},
        peers={"torch": torchs, "torch.compile": compiled},
    ),
]
