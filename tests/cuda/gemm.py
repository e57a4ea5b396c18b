"""Calls of tests/cuda/gemm.cu: operands whose products are exact in float32, and tensor maps of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from afn_kernels import _cuda, _tensor_map

SOURCE = Path(__file__).with_name("gemm.cu")


@dataclass(frozen=True)
class Gemm:
    """A kernel of gemm.cu: its tile's rows and columns, stages and swizzle, and which operands are K-major."""

    name: str
    dtype: torch.dtype
    m: int
    n: int
    stages: int
    swizzle: int
    a_k: bool = True
    b_k: bool = True
    by_threads: bool = True  # how sums are written
    parts: int = 1  # of k

    @property
    def shared(self) -> int:
        row = self.n + 4 * self.by_threads
        return self.stages * (self.m + self.n) * self.swizzle + 4 * self.m * row + 16 * self.stages

    def kernel(self) -> _cuda.Kernel:
        return _cuda.Kernel("gemm", f"gemm_{self.name}", "128s128s128sPPiiii32x", 128 + 2 * self.m)

    def map(self, x: torch.Tensor, rows: int, k_major: bool) -> bytes:
        width = self.swizzle // x.element_size()
        return _tensor_map.encode(x, (rows, width) if k_major else (width, width), self.swizzle)

    def __call__(self, a: torch.Tensor, b: torch.Tensor, blocks: int = 2) -> torch.Tensor:
        """a [m, k] times b [n, k]; [k, m] and [k, n] where they are not K-major."""
        (m, k), n = a.shape if self.a_k else a.shape[::-1], b.shape[0 if self.b_k else 1]
        room = torch.full((m * n + 4,), 0.0 if self.parts > 1 else float("nan"))
        c = room[-room.data_ptr() // 4 % 4 :][: m * n].view(m, n)
        maps = self.map(a, self.m, self.a_k), self.map(b, self.n, self.b_k)
        out = bytes(128) if self.by_threads else _tensor_map.encode(c, (64, self.n), 0)
        parameters = *maps, out, a.data_ptr(), c.data_ptr(), m, n, k, self.parts
        self.kernel().launch((blocks, 1), self.shared, a.device, *parameters)
        return c


GEMMS = (
    Gemm("bf16", torch.bfloat16, 128, 128, 3, 128),
    Gemm("bf16_turned", torch.bfloat16, 64, 64, 2, 128, a_k=False, b_k=False),
    Gemm("f16_narrow", torch.float16, 64, 64, 4, 64, b_k=False),
    Gemm("f16_registers", torch.float16, 64, 256, 2, 64),
    Gemm("bf16_threads", torch.bfloat16, 64, 64, 2, 32),
    Gemm("e4m3", torch.float8_e4m3fn, 128, 128, 3, 128),
    Gemm("bf16_three", torch.bfloat16, 192, 64, 3, 128, by_threads=False),
    Gemm("f16_parts", torch.float16, 64, 64, 2, 128, by_threads=False, parts=3),
)


def operands(gemm: Gemm, m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Small whole numbers, in any order of summation the same."""
    g = torch.Generator().manual_seed(m + n + k)
    a, b = (torch.randint(-8, 9, (rows, k), generator=g).to(gemm.dtype) for rows in (m, n))
    return a if gemm.a_k else a.T.contiguous(), b if gemm.b_k else b.T.contiguous()


def product(gemm: Gemm, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.float(), b.float()
    return (a if gemm.a_k else a.T) @ (b.T if gemm.b_k else b)


def folder(made: Path) -> Path:
    """As csrc is, with gemm.cu alone."""
    (made / "cuda").mkdir(parents=True, exist_ok=True)
    (made / "cuda" / "gemm.cu").symlink_to(SOURCE)
    (made / "include").symlink_to(_cuda.sources() / "include")
    return made
