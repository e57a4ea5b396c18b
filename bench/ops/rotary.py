"""rotary at the language model's heads: training, a 45K prefill, and a step of 64 sequences that fills the cache."""

import torch

from bench.ops import Absent, Workload, sized

HEADS, KV_HEADS, DIM = 28, 4, 128
KINDS = {8192: "training", 45_056: "prefill"}


def inputs(tokens: int, heads: int, kv_heads: int, dim: int, cache: bool = False):
    """q, k and v are slices of one projection."""

    def make(device: str, dtype: torch.dtype):
        qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device, dtype=dtype)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), 1)
        made = {
            "q": q,
            "k": k,
            "positions": torch.arange(tokens, device=device).float(),
            "inv_freq": 15_300_000.0 ** (-torch.arange(0, dim, 2, device=device).float() / dim),
        }
        if cache:
            # As many rows as tokens: the bytes of a launch are those of its tensors, and the rest stays untouched.
            k_cache, v_cache = (torch.zeros(tokens, kv_heads, dim, device=device, dtype=dtype) for _ in range(2))
            slots = torch.arange(tokens, device=device).flip(0)
            made |= {"v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slots}
        return made

    return make


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def torchs(i):
    """As Hugging Face models do it, tables made in the call."""
    angle = i["positions"][:, None] * i["inv_freq"]
    angle = torch.cat((angle, angle), -1)[:, None]
    cos, sin = angle.cos().to(i["q"].dtype), angle.sin().to(i["q"].dtype)
    q, k = rotated(i["q"], cos, sin), rotated(i["k"], cos, sin)
    if "slots" in i:
        i["k_cache"].index_copy_(0, i["slots"], k)
        i["v_cache"].index_copy_(0, i["slots"], i["v"])
    return q, k


compiled = torch.compile(torchs, dynamic=True)


def ligers(i):
    try:
        from liger_kernel.ops.rope import LigerRopeFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    if "slots" in i:
        raise Absent("its rope writes no cache")
    angle = i["positions"][:, None] * i["inv_freq"]
    angle = torch.cat((angle, angle), -1)[None]
    q, k = (i[name].transpose(0, 1)[None] for name in ("q", "k"))
    q, k = LigerRopeFunction.apply(q, k, angle.cos().to(q.dtype), angle.sin().to(q.dtype))
    return q[0].transpose(0, 1), k[0].transpose(0, 1)


@sized()
def workload(
    tokens: int = 8192, heads: int = HEADS, kv_heads: int = KV_HEADS, dim: int = DIM, cache: bool = False
) -> Workload:
    head = tokens * dim * 2
    turn = 2 * (heads + kv_heads) * head  # read and write
    kind = "decoding into a cache" if cache else KINDS.get(tokens, "no cache")
    return Workload(
        "rotary",
        f"{tokens} x ({heads} + {kv_heads}) x {dim}, {kind}",
        inputs(tokens, heads, kv_heads, dim, cache),
        () if cache else ("q", "k"),
        (turn + 3 * kv_heads * head if cache else turn, turn),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [workload(8192), workload(45_056), workload(64, cache=True)]
