"""pack_heads and unpack_heads around the all-to-all of four ranks: 6,144 rows of a 24K batch, 28 and 4 heads of 128."""

import torch

from bench.ops import Workload, normal, sized

ROWS, HEADS, KV_HEADS, DIM = 6144, 28, 4, 128
PEERS = tuple((7 * p, 7 * p + 7, p, p + 1) for p in range(4))


def inputs(rows: int, rotary: bool = False):
    def make(device: str, dtype: torch.dtype):
        made = {
            name: normal(rows, heads, DIM, device=device, dtype=dtype)
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        }
        if rotary:
            made["positions"] = torch.arange(rows, device=device, dtype=torch.float32)
            made["inv_freq"] = 1e-4 ** (torch.arange(0, DIM, 2, device=device) / DIM)
        return made

    return make


def flat(rows: int):
    return lambda device, dtype: {"flat": normal(rows * HEADS * DIM, device=device, dtype=dtype)}


def concatenated(i):
    parts = (torch.cat((i["q"][:, a:b], i["k"][:, c:d], i["v"][:, c:d]), 1).reshape(-1) for a, b, c, d in PEERS)
    return torch.cat(list(parts))


def put_together(i):
    return torch.cat(list(i["flat"].view(len(PEERS), -1, HEADS // len(PEERS), DIM)), 1)


@sized()
def packing(rows: int = ROWS, rotary: bool = False) -> Workload:
    moved = 2 * 2 * rows * (HEADS + 2 * KV_HEADS) * DIM  # read once and written once
    return Workload(
        "pack_heads",
        f"{rows} rows to 4 peers" + (", rotated" if rotary else ""),
        inputs(rows, rotary),
        ("q", "k", "v"),
        (moved, moved),
        options={"heads": PEERS},
        peers={} if rotary else {"torch": concatenated, "torch.compile": torch.compile(concatenated, dynamic=True)},
    )


@sized()
def unpacking(rows: int = ROWS) -> Workload:
    return Workload(
        "unpack_heads",
        f"{rows} rows from 4 peers",
        flat(rows),
        ("flat",),
        (2 * 2 * rows * HEADS * DIM,) * 2,
        options={"heads": PEERS, "head_dim": DIM},
        peers={"torch": put_together, "torch.compile": torch.compile(put_together, dynamic=True)},
    )


WORKLOADS = [packing(), packing(rotary=True), unpacking()]
