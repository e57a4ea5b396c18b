"""Logits of the language model: 151,672 classes, and 256,000 capped ones as Gemma 2 has them."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, sized

CLASSES, GEMMA = 151_672, 256_000


def inputs(rows: int, classes: int):
    def make(device: str, dtype: torch.dtype):
        logits = 2 * torch.randn(rows, classes, device=device, dtype=dtype)
        return {"logits": logits, "labels": torch.randint(0, classes, (rows,), device=device)}

    return make


def plain(logits, labels):
    return F.cross_entropy(logits.float(), labels)


def plain_capped(logits, labels):
    return F.cross_entropy(30 * torch.tanh(logits.float() / 30), labels, label_smoothing=0.1)


compiled, compiled_capped = (torch.compile(f, dynamic=True) for f in (plain, plain_capped))


def quacks(i):
    try:
        from quack.cross_entropy import cross_entropy
    except ImportError as error:
        raise Absent("quack-kernels is not installed") from error
    return cross_entropy(i["logits"], i["labels"], reduction="mean")


@sized()
def workload(rows: int = 8192, classes: int = CLASSES, capped: bool = False) -> Workload:
    """``capped``: also smoothed."""
    options = {"label_smoothing": 0.1, "softcap": 30.0} if capped else {}
    size = rows * classes * 2
    eager, traced = (plain_capped, compiled_capped) if options else (plain, compiled)
    return Workload(
        "cross_entropy",
        f"{rows} x {classes}{', smoothed and capped' if capped else ''}",
        inputs(rows, classes),
        ("logits",),
        (size, 2 * size),
        options=options,
        peers={
            "torch": lambda i: eager(**i),
            "torch.compile": lambda i: traced(**i),
            **({} if options else {"quack": quacks}),  # Liger's writes its gradient over the logits
        },
    )


WORKLOADS = [
    workload(8192, CLASSES),
    workload(8192, GEMMA, capped=True),
]
