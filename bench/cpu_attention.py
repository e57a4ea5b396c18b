"""Attention on a CPU, forward and backward: batched matrix products against PyTorch's fused attention.

    python -m bench.cpu_attention [--out results.jsonl] [--rounds 5]

The order of the implementations in ``afn_kernels/attention/__init__.py`` follows from this.
"""

import torch

import afn_kernels as ak
from bench.measure import main, milliseconds

TOKENS, HEADS, DIM = 4096, 2, 64
LENGTHS = (64, 128, 256, 512, 1024, 2048)


def calls(length: int) -> dict:
    """Forward, and forward with backward, of 4,096 tokens in sequences of one length."""
    q, k, v = (torch.randn(TOKENS, HEADS, DIM, requires_grad=True) for _ in range(3))
    cu = torch.arange(0, TOKENS + 1, length, dtype=torch.int32)

    def forward(impl: str):
        with torch.no_grad():
            return ak.attention(q, k, v, cu_seqlens_q=cu, causal=True, impl=impl)

    def both(impl: str):
        ak.attention(q, k, v, cu_seqlens_q=cu, causal=True, impl=impl).sum().backward()

    return {
        f"{length} {what} {impl}": (lambda call=call, impl=impl: call(impl))
        for impl in ("matmul", "sdpa")
        for what, call in (("forward", forward), ("forward+backward", both))
    }


def measure(rounds: int, device: str) -> dict:
    """Milliseconds for every length, implementation and direction."""
    torch.manual_seed(0)
    times = {}
    for length in LENGTHS:
        times |= milliseconds(calls(length), rounds)
    for name, value in times.items():
        print(f"{name:<34}{value:9.2f} ms")
    return {"benchmark": "cpu_attention", "tokens": TOKENS, "heads": HEADS, "dim": DIM, "milliseconds": times}


if __name__ == "__main__":
    main(__doc__, measure, rounds=5)
