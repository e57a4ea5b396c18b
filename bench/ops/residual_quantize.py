"""residual_quantize through 72 levels of 1,024 codes: a step of 16 streams, a batch of clips, 100,000 frames.

Values are small whole numbers, with which nothing rounds: whoever searches right finds the same codes.
"""

import torch

from bench.ops import Workload, sized


def inputs(rows: int, width: int, levels: int, codes: int):
    def make(device: str, dtype: torch.dtype):
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "x": torch.randint(-8, 9, (rows, width), device=device, dtype=dtype),
            "codebooks": torch.randint(-2, 3, (levels, codes, width), device=device, dtype=wide),
        }

    return make


def torchs(i):
    x, total, codes = i["x"].float(), torch.zeros_like(i["x"], dtype=torch.float32), []
    for book in i["codebooks"]:
        codes.append(torch.cdist(x - total, book).argmin(1))
        total = total + book[codes[-1]]
    return torch.stack(codes, 1), total


@sized(lambda length, **_: {"rows": length, "levels": 4})  # fewer codebooks, which a CPU has room for
def workload(rows: int = 6_892, width: int = 512, levels: int = 72, codes: int = 1024) -> Workload:
    least = rows * (width * 6 + levels * 8) + levels * codes * width * 4  # x, total, codes and the codebooks
    return Workload(
        "residual_quantize",
        f"{rows} x {width}, {levels} x {codes} codes",
        inputs(rows, width, levels, codes),
        (),
        (least, 0.0),
        (2.0 * rows * levels * codes * width, 0.0),
        peers={"torch": torchs},
    )


WORKLOADS = [workload(), workload(16), workload(100_000)]
