"""linear_fp8 of the decoder's layers: forward, the gradients of input and weight, and a decode step."""

import torch

import afn_kernels as ak
from afn_kernels.linear_fp8.config import choose
from bench.ops import Absent, Workload, normal, sized

WIDTH, KV, INNER = 3584, 512, 18944
KERNELS = {"row": "at_end", "tiles": "by_tile", "blocks": "by_row"}
BLOCKS = {"row": ("row", "row"), "tiles": ((1, 128), (128, 128)), "blocks": ((1, 128), (1, 128))}


def inputs(rows: int, columns: int, inner: int, scales: str):
    def make(device: str, dtype: torch.dtype):
        made = {}
        for name, length, block in (("x", rows, BLOCKS[scales][0]), ("w", columns, BLOCKS[scales][1])):
            x = normal(length, inner, device=device, dtype=torch.bfloat16)
            # On "meta" nothing runs, and a kernel would be counted as a launch.
            made[name], made[f"scale_{name}"] = ak.quantize_fp8(x, block=block, impl="reference")
        return made

    return make


def scaled(dtype: torch.dtype):
    def product(i):
        try:
            return ak.linear_fp8(**i, out_dtype=dtype, impl="scaled_mm")
        except ValueError as error:
            raise Absent(str(error)) from None

    return product


@sized()
def workload(
    rows: int = 8192,
    columns: int = INNER,
    inner: int = WIDTH,
    scales: str = "tiles",
    dtype: torch.dtype = torch.bfloat16,
) -> Workload:
    tile = choose(rows, columns, 132)
    return Workload(
        "linear_fp8",
        f"{rows} x {inner} x {columns}, {scales}{', float32' if dtype == torch.float32 else ''}",
        inputs(rows, columns, inner, scales),
        (),
        (inner * (rows + columns) + rows * columns * dtype.itemsize, 0.0),
        (2.0 * rows * columns * inner, 0.0),
        options={"out_dtype": dtype},
        rate=2.0,
        matrix=(f"linear_fp8.cu: linear_fp8_{tile.rows}x{tile.columns}_{KERNELS[scales]}",),
        peers={"torch._scaled_mm": scaled(dtype)},
    )


WORKLOADS = [
    workload(8192, INNER, WIDTH),  # gate and up
    workload(8192, WIDTH, INNER),  # down, and the gradient of the input of gate and up
    workload(8192, WIDTH, WIDTH),  # q and o, and the gradients of their inputs
    workload(8192, KV, WIDTH),  # k and v
    workload(8192, WIDTH, KV),  # the gradient of their input
    workload(INNER, WIDTH, 8192, "blocks", torch.float32),  # the gradient of a weight
    workload(WIDTH, WIDTH, 8192, "blocks", torch.float32),
    workload(8192, INNER, WIDTH, "row"),
    workload(512, WIDTH, WIDTH),
    workload(64, INNER, WIDTH, "row"),  # a decode step
]
