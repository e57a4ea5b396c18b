import torch

from tests.kernels.harness import ALL, Case


def inputs(g, rows, classes=300, ignored=3):
    """A third of the rows without supervision; logits of a standard deviation of 2."""
    logits = 2 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    labels = torch.randint(0, classes, (rows,), generator=g)
    if ignored:
        labels[::ignored] = -100
    return {"logits": logits, "labels": labels}


CE, WRT = "cross_entropy", ("logits",)
OPTIONS = {"label_smoothing": 0.1, "softcap": 4.0, "z_loss": 1e-2}  # a cap that a few logits reach
CASES = [
    Case(CE, "mean", inputs, WRT, dtypes=ALL, size=13, far=WRT),
    Case(CE, "one loss per row", lambda g, n: inputs(g, n, 531), WRT, OPTIONS | {"reduction": "none"}, size=13),
    Case(CE, "a row in two blocks", lambda g, n: inputs(g, n, 20_001), WRT, OPTIONS | {"reduction": "sum"}, size=6),
    Case(CE, "no supervision", lambda g, n: inputs(g, n, ignored=1), WRT, size=5),
    Case(CE, "no rows", inputs, WRT, size=0),
]
