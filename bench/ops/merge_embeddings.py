"""merge_embeddings at the language model's width: a 45K prompt, mostly audio, and an 8K batch with a third of it."""

import torch

from bench.ops import Workload, normal, sized

WIDTH = 3584


def inputs(count: int, audio: int, width: int):
    def make(device: str, dtype: torch.dtype):
        rows = torch.arange(audio, device=device) + (count - audio) // 2
        return {
            "tokens": normal(count, width, device=device, dtype=dtype),
            "audio": normal(audio, width, device=device, dtype=dtype),
            "rows": rows,
        }

    return make


def index_copy(i):
    return i["tokens"].index_copy(0, i["rows"], i["audio"])


def masked_scatter(i):
    mask = torch.zeros(len(i["tokens"]), 1, dtype=torch.bool, device=i["tokens"].device)
    return i["tokens"].masked_scatter(mask.index_fill(0, i["rows"], True), i["audio"])


@sized(lambda length, **_: {"tokens": length, "audio": length // 3})
def workload(tokens: int = 8192, audio: int = 2730, width: int = WIDTH) -> Workload:
    row = width * 2
    # Forward: every row is read from where it comes and written. Backward: dy is read, both gradients are written.
    return Workload(
        "merge_embeddings",
        f"{audio} of {tokens} x {width}",
        inputs(tokens, audio, width),
        ("tokens", "audio"),
        (2 * tokens * row, (2 * tokens + audio) * row),
        peers={
            "torch": index_copy,
            "torch.compile": torch.compile(index_copy, dynamic=True),
            "masked_scatter": masked_scatter,
        },
    )


WORKLOADS = [workload(8192, 2730), workload(45056, 45000)]
