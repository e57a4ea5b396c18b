"""quantize_fp8 of the language model's activations and weights."""

import torch

from bench.ops import Workload, normal, sized

WIDTH, INNER = 3584, 18944


def inputs(rows: int, width: int):
    return lambda device, dtype: {"x": normal(rows, width, device=device, dtype=dtype)}


def torchs(block, transpose):
    def quantize(i):
        x = i["x"].T if transpose else i["x"]
        rows, columns = x.shape
        height, width = {"row": (1, columns), "tensor": (rows, columns)}.get(block, block)
        blocks = x.float().reshape(rows // height, height, columns // width, width)
        scale = (blocks.abs().amax((1, 3), keepdim=True) / 448).clamp(min=2.0**-126)
        return (blocks / scale).to(torch.float8_e4m3fn).reshape(rows, columns), scale[:, 0, :, 0]

    return quantize


def after(op, block):
    """``op``'s first result in FP8, the others behind it."""
    quantize = torchs(block, False)

    def quantised(i):
        y, *more = found if isinstance(found := op(i), tuple) else (found,)
        return (*quantize({"x": y}), *more)

    return quantised


@sized()
def workload(
    rows: int = 8192, width: int = WIDTH, block: str | tuple[int, ...] = "row", transpose: bool = False
) -> Workload:
    eager = torchs(block, transpose)
    name = block if isinstance(block, str) else f"{block[0]} x {block[1]}"
    twice = block == "tensor" or (block == "row" and transpose)  # the scale needs what no cache holds
    return Workload(
        "quantize_fp8",
        f"{rows} x {width}, {name}{', transposed' if transpose else ''}",
        inputs(rows, width),
        (),
        (rows * width * (5.0 if twice else 3.0), 0.0),  # read bf16, write FP8
        options={"block": block, "transpose": transpose},
        peers={"torch": eager, "torch.compile": torch.compile(eager, dynamic=True)},
    )


WORKLOADS = [
    workload(8192, WIDTH, "row"),
    workload(8192, INNER, "row"),
    workload(8192, WIDTH, (1, 128)),
    workload(8192, WIDTH, (1, 128), transpose=True),
    workload(8192, WIDTH, "row", transpose=True),
    workload(INNER, WIDTH, (128, 128)),
    workload(INNER, WIDTH, "tensor"),
]
