import torch

from tests.kernels.harness import ALL, Case


def inputs(share: float, width: int = 48):
    def make(g: torch.Generator, count: int) -> dict[str, torch.Tensor]:
        rows = torch.randperm(count, generator=g)[: int(share * count)]
        return {
            "tokens": torch.randn(count, width, generator=g, dtype=torch.float64),
            "audio": torch.randn(len(rows), width, generator=g, dtype=torch.float64),
            "rows": rows,
        }

    return make


WRT = ("tokens", "audio")
CASES = [
    Case("merge_embeddings", "a third", inputs(1 / 3), WRT, dtypes=ALL, far=("tokens", "audio")),
    Case("merge_embeddings", "odd width, every row", inputs(1.0, 37), WRT, size=9),
    Case("merge_embeddings", "no audio", inputs(0.0), WRT, size=5),
    Case("merge_embeddings", "one row", inputs(1.0), WRT, size=1),
    Case("merge_embeddings", "nothing", inputs(1.0), WRT, size=0),
    Case("merge_embeddings", "wider than a block", inputs(0.5, 5000), WRT, size=3),
]
