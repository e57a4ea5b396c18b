"""rote at the encoder's width: a training batch of 16 windows, and 30 minutes of audio."""

import math

import torch

from bench.ops import Workload, normal, sized

WIDTH, FRAMES, ROTARY = 1280, 750, 256
OPTIONS = {torch.float32: {}, torch.float64: {"phase_dtype": torch.float64}}


def inputs(rows: int, width: int = WIDTH):
    def make(device: str, dtype: torch.dtype):
        row = torch.arange(rows, device=device)
        return {"x": normal(rows, width, device=device, dtype=dtype), "window": row // FRAMES, "frame": row % FRAMES}

    return make


def torchs(phase_dtype: torch.dtype):
    """As the released integration does it: float32 phases, a rotation in float64."""

    def peer(i):
        exponent = torch.arange(0, ROTARY, 2, device=i["x"].device).to(phase_dtype) / ROTARY
        f = 1.0 / 1200.0**exponent
        window, frame = i["window"].to(phase_dtype), i["frame"].to(phase_dtype)
        turn = (-(window * FRAMES * 0.04 + frame * 0.04) * 2 * math.pi)[:, None]
        axes = ((window / 1200)[:, None] * f, (frame / 1200 * 2 * math.pi)[:, None] * f)
        phi = (torch.cat(axes, -1) * turn).repeat_interleave(2, -1)
        x = i["x"][:, : phi.shape[1]].double()
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        y = x * phi.cos() + torch.stack((-b, a), -1).flatten(-2) * phi.sin()
        return torch.cat((y.to(i["x"].dtype), i["x"][:, phi.shape[1] :]), -1)

    return peer


PEERS = {
    dtype: {"torch": torchs(dtype), "torch.compile": torch.compile(torchs(dtype), dynamic=True)} for dtype in OPTIONS
}


@sized()
def workload(rows: int = 12_000, width: int = WIDTH, phase_dtype: torch.dtype = torch.float32) -> Workload:
    tensor = rows * width * 2
    return Workload(
        "rote",
        f"{rows} x {width}, {str(phase_dtype).removeprefix('torch.')} phases",
        inputs(rows, width),
        ("x",),
        (2 * tensor, 2 * tensor),
        options=OPTIONS[phase_dtype],
        peers=PEERS[phase_dtype],
    )


WORKLOADS = [workload(12_000), workload(45_000), workload(45_000, phase_dtype=torch.float64)]
