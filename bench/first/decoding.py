"""A step of four decoder layers at the shapes of a 7B model, as eager calls and as one CUDA graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import afn_kernels as ak
from afn_kernels import _verdicts
from bench import timing
from bench.first.child import COMPILE, DEVICE, alone, preparing, say
from bench.first.figures import ROUNDS, replayed

IMPL = "triton" if COMPILE else "auto"
LAYERS, CONTEXT = (4, 8192) if DEVICE == "cuda" else (2, 64)
WIDTH, INNER, HEADS, KV_HEADS, DIM = (3584, 18944, 28, 4, 128) if DEVICE == "cuda" or COMPILE else (64, 96, 4, 2, 16)


class DecodeStep:
    """One new token of one sequence."""

    def __init__(self, device: str, dtype: torch.dtype):
        def made(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=dtype) * shape[-1] ** -0.5

        both = HEADS + 2 * KV_HEADS
        self.x = made(1, WIDTH)
        self.layers = [
            {"norm": made(WIDTH), "norm2": made(WIDTH), "qkv": made(both * DIM, WIDTH), "bias": made(both * DIM),
             "out": made(WIDTH, HEADS * DIM), "gate_up": made(2 * INNER, WIDTH), "down": made(WIDTH, INNER),
             "k": made(CONTEXT, KV_HEADS, DIM), "v": made(CONTEXT, KV_HEADS, DIM)}
            for _ in range(LAYERS)
        ]  # fmt: skip
        self.positions = torch.full((1,), CONTEXT - 1.0, device=device)
        self.inv_freq = 1e6 ** (-torch.arange(0, DIM, 2, device=device).float() / DIM)
        self.slots = torch.full((1,), CONTEXT - 1, device=device)
        self.lengths = torch.full((1,), CONTEXT, device=device, dtype=torch.int32)

    def bytes(self) -> int:
        """What a step has to read."""
        return sum(x.nbytes for layer in self.layers for x in layer.values())

    def __call__(self, _: int = 0) -> torch.Tensor:
        h, branch = self.x, None
        for w in self.layers:
            if branch is None:
                x = ak.rms_norm(h, w["norm"], impl=IMPL)
            else:
                x, h = ak.rms_norm(branch, w["norm"], residual=h, impl=IMPL)
            qkv = F.linear(x, w["qkv"])
            if COMPILE:  # its kernel is machine code already
                q = qkv[:, : HEADS * DIM].view(1, HEADS, DIM)
            else:
                rotation = (self.positions, self.inv_freq)
                q = ak.qkv_rotary(qkv, *rotation, w["k"], w["v"], self.slots, bias=w["bias"], impl="cuda")
            out = ak.decode_attention(q[None], w["k"][None], w["v"][None], self.lengths, impl=IMPL)
            x, h = ak.rms_norm(F.linear(out.reshape(1, -1), w["out"]), w["norm2"], residual=h, impl=IMPL)
            gate, up = F.linear(x, w["gate_up"]).split(INNER, 1)
            branch = F.linear(ak.swiglu(gate, up, impl=IMPL), w["down"])
        return h + branch


def step() -> int:
    """Its time and its bytes against those of a copy."""
    if COMPILE:
        from bench.first.compilation import compiling

        with compiling("decode step"):
            DecodeStep("meta", torch.bfloat16)()
        return 0
    torch.manual_seed(0)
    with torch.no_grad():
        with preparing():
            one = DecodeStep(DEVICE, torch.bfloat16 if DEVICE == "cuda" else torch.float32)
            eager = one().clone()
            calls = {"eager": one}
            why = ""
            if DEVICE == "cuda":
                try:
                    calls["graph"] = replayed(one, 1)
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        out = one()
                    graph.replay()
                    torch.cuda.synchronize()
                    why = "" if torch.equal(out, eager) else "the graph's bits are others"
                except Exception as error:
                    why = _verdicts.one_line(error)
        with alone():
            times = timing.interleaved(timing.clock(DEVICE), calls, 1, 2 * ROUNDS, 4.0)
    for name, timed in times.items():
        seconds = timing.quantile(timed.device, 0.5)
        say("decode_step", how=name, status="failed" if why else "ok", why=why, layers=LAYERS, context=CONTEXT,
            median_us=round(1e6 * seconds, 2), host_us=round(1e6 * timing.quantile(timed.launch, 0.5), 2),
            gb_s=round(one.bytes() / seconds / 1e9, 1) if DEVICE == "cuda" else None)  # fmt: skip
    return 0
