import torch

from tests.kernels.harness import ALL, BF16, HALF, Case


def inputs(g, rows, width=48, classes=300, ignored=3):
    """A third of the rows without supervision; logits of a standard deviation of 2."""
    hidden = 2 * torch.randn(rows, width, generator=g, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=g, dtype=torch.float64) / width**0.5
    labels = torch.randint(0, classes, (rows,), generator=g)
    if ignored:
        labels[::ignored] = -100
    return {"hidden": hidden, "weight": weight, "labels": labels}


def everything(g, rows):
    return inputs(g, rows, ignored=0)


def odd(g, rows):
    return inputs(g, rows, 37, 531)


def nothing(g, rows):
    return inputs(g, rows, ignored=1)


def targets(g, rows, width=48, classes=300):
    made = inputs(g, rows, width, classes, ignored=0)
    return made | {"targets": made.pop("labels")}


def biased(g, rows, name="labels"):
    made = targets(g, rows) if name == "targets" else inputs(g, rows)
    return made | {"bias": torch.randn(300, generator=g, dtype=torch.float64)}


WRT = ("hidden", "weight")
MATRIX = {"dtypes": (BF16, torch.float32)}  # without gradient there is a tl.dot, for 16 bits
OPTIONS = {"label_smoothing": 0.1, "softcap": 4.0, "z_loss": 1e-2}  # a cap that a few logits reach
NONE = {"reduction": "none"}
MIXED = {"keep": ("weight", "bias"), "dtypes": (BF16, HALF)}
CE, LP = "linear_cross_entropy", "linear_logprob"
CASES = [
    Case(CE, "mean", inputs, WRT, dtypes=ALL, far=("hidden",)),
    Case(CE, "sum with z-loss", inputs, WRT, {"reduction": "sum", "z_loss": 1e-2}),
    Case(CE, "every row supervised", everything, WRT, {"z_loss": 1e-2}),
    Case(CE, "odd sizes", odd, WRT),
    Case(CE, "no supervision", nothing, WRT),
    Case(CE, "no rows", inputs, WRT, size=0),
    Case(CE, "frozen head", inputs, ("hidden",)),
    Case(CE, "loss alone", inputs, options={"z_loss": 1e-2}, size=200, far=("hidden",), **MATRIX),
    Case(CE, "loss alone, odd sizes", odd, **MATRIX),
    Case(CE, "every option", biased, (*WRT, "bias"), OPTIONS, size=27),
    Case(CE, "float32 parameters", biased, (*WRT, "bias"), size=27, **MIXED),
    Case(CE, "one loss per row", biased, (*WRT, "bias"), OPTIONS | NONE, size=13, **MATRIX),
    Case(CE, "loss alone, every option", biased, options=OPTIONS, size=13, **MATRIX),
    Case(LP, "log-probabilities", targets, WRT, dtypes=(BF16, HALF, torch.float32), far=("hidden",)),
    Case(LP, "odd sizes", lambda g, n: targets(g, n, 37, 531), WRT, **MATRIX),
    Case(LP, "bias and cap", lambda g, n: biased(g, n, "targets"), (*WRT, "bias"), {"softcap": 4.0}, size=13, **MATRIX),
    Case(LP, "one row", targets, WRT, size=1, **MATRIX),
    Case(LP, "no rows", targets, WRT, size=0, **MATRIX),
]
