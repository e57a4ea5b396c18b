"""causal_conv in the codec's three stages over 1,000 s of 44.1 kHz sound, and over clips of training."""

import torch
import torch.nn.functional as F

from bench.ops import Workload, normal, sized

TAPS = 7


def inputs(clips: int, frames: int, channels: int):
    def make(device: str, dtype: torch.dtype):
        return {
            "x": normal(clips, frames, channels, device=device, dtype=dtype),
            "weight": normal(channels, TAPS, device=device, dtype=dtype),
            "bias": normal(channels, device=device, dtype=dtype),
        }

    return make


def torchs(i):
    x = F.pad(i["x"].mT, (i["weight"].shape[1] - 1, 0))
    return F.conv1d(x, i["weight"][:, None], i["bias"], groups=len(i["weight"])).mT


@sized(lambda length, **_: {"frames": length})
def workload(clips: int = 32, frames: int = 11_008, channels: int = 384) -> Workload:
    tensor, operations = clips * frames * channels * 2, 2.0 * clips * frames * channels * TAPS
    return Workload(
        "causal_conv",
        f"{clips} x {frames} x {channels}, {TAPS} taps",
        inputs(clips, frames, channels),
        ("x", "weight", "bias"),
        (2 * tensor, 3 * tensor),  # forward: read x, write y; backward: read dy and x, write dx
        (operations, 2 * operations),
        peers={"torch": torchs, "torch.compile": torch.compile(torchs, dynamic=True)},
    )


WORKLOADS = [
    workload(),
    workload(1, 5_512_192, 384),
    workload(1, 689_024, 768),
    workload(1, 86_128, 1536),
]
