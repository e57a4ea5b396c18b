"""qkv_rotary of a decode step: one and 64 sequences, 28 query and 4 KV heads of 128, and an FP8 cache."""

import torch

from bench.ops import Absent, Workload, normal, sized
from bench.ops.rotary import rotated

HEADS, KV_HEADS, DIM = 28, 4, 128
WIDTH = (HEADS + 2 * KV_HEADS) * DIM


def inputs(tokens: int, fp8: bool = False):
    def make(device: str, dtype: torch.dtype):
        cache_dtype = torch.float8_e4m3fn if fp8 else dtype
        # As many rows as tokens: the bytes of a launch are those of its tensors, and the rest stays untouched.
        caches = [torch.zeros(tokens, KV_HEADS, DIM, device=device).to(cache_dtype) for _ in range(2)]
        made = {
            "qkv": normal(tokens, WIDTH, device=device, dtype=dtype),
            "positions": torch.arange(tokens, device=device).float(),
            "inv_freq": 15_300_000.0 ** (-torch.arange(0, DIM, 2, device=device).float() / DIM),
            **dict(zip(("k_cache", "v_cache"), caches, strict=True)),
            "slots": torch.arange(tokens, device=device).flip(0),
            "bias": normal(WIDTH, device=device, dtype=dtype),
        }
        return made | ({n: torch.ones(KV_HEADS, device=device) for n in ("k_scale", "v_scale")} if fp8 else {})

    return make


def torchs(i):
    if "k_scale" in i:
        raise Absent("index_copy_ takes no FP8")
    heads = (i["qkv"] + i["bias"]).view(-1, HEADS + 2 * KV_HEADS, DIM)
    q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), 1)
    angle = i["positions"][:, None] * i["inv_freq"]
    angle = torch.cat((angle, angle), -1)[:, None]
    cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    i["k_cache"].index_copy_(0, i["slots"], rotated(k, cos, sin))
    i["v_cache"].index_copy_(0, i["slots"], v)
    return rotated(q, cos, sin)


compiled = torch.compile(torchs, dynamic=True)


@sized()
def workload(tokens: int = 1, fp8: bool = False) -> Workload:
    moved = tokens * DIM * (2 * (2 * HEADS + 2 * KV_HEADS) + 2 * KV_HEADS * (1 if fp8 else 2)) + 2 * WIDTH
    return Workload(
        "qkv_rotary",
        f"{tokens} tokens{', FP8 cache' if fp8 else ''}",
        inputs(tokens, fp8),
        (),
        (moved, 0),
        peers={"torch": torchs, "torch.compile": compiled},
    )


WORKLOADS = [workload(1), workload(64), workload(64, fp8=True)]
