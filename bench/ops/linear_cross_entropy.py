"""The head of the language model: 151,672 classes of 3,584, trainable or frozen, and packed text with few labels."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized

WIDTH, CLASSES = 3584, 151_672
IGNORE = -100


def inputs(rows: int, width: int, classes: int, every: int = 1, labels: str = "labels", bias: bool = False):
    """Every ``every``-th row has a label."""

    def make(device: str, dtype: torch.dtype):
        made = torch.randint(0, classes, (rows,), device=device)
        if every > 1:
            made[torch.arange(rows, device=device) % every != 0] = IGNORE
        return {
            "hidden": normal(rows, width, device=device, dtype=dtype),
            "weight": normal(classes, width, device=device, dtype=dtype) * width**-0.5,
            labels: made,
            **({"bias": normal(classes, device=device, dtype=dtype)} if bias else {}),
        }

    return make


def supervised(i):
    """Hidden states, weight and labels of the rows that have a label: every peer is spared the others."""
    kept = i["labels"] != IGNORE
    return i["hidden"][kept], i["weight"], i["labels"][kept]


def plain_loss(hidden, weight, labels):
    """Logits of all supervised rows at once: about 20 GB with their gradients for 13,108 rows."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def plain_logprob(hidden, weight, targets):
    return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


def plain_optional(hidden, weight, labels, bias):
    """With OPTIONS, as PyTorch writes them."""
    logits = 30 * torch.tanh(F.linear(hidden, weight, bias).float() / 30)
    return F.cross_entropy(logits, labels, label_smoothing=OPTIONS["label_smoothing"])


OPTIONS = {"label_smoothing": 0.1, "softcap": 30.0}
compiled_loss, compiled_logprob, compiled_optional = (
    torch.compile(f, dynamic=True) for f in (plain_loss, plain_logprob, plain_optional)
)


def torchs(i):
    return plain_logprob(**i) if "targets" in i else plain_loss(*supervised(i))


def compiled(i):
    return compiled_logprob(**i) if "targets" in i else compiled_loss(*supervised(i))


def ligers(i):
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    if "targets" in i:
        raise Absent("its fused loss returns no log-probabilities with a gradient per row")
    return LigerFusedLinearCrossEntropyFunction.apply(*supervised(i))[0]


def quacks(i):
    """Chunks of 4,096 rows: 1.2 GB of logits."""
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy
    except ImportError as error:
        raise Absent("quack-kernels is not installed") from error
    if "targets" in i:
        raise Absent("it returns no log-probabilities with a gradient per row")
    return chunked_linear_cross_entropy(*supervised(i))


def cuts(i):
    """Cut cross-entropy: logits are computed three times and never stored."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Absent("cut-cross-entropy is not installed") from error
    if "targets" in i:
        return -linear_cross_entropy(i["hidden"], i["weight"], i["targets"], reduction="none")
    return linear_cross_entropy(*supervised(i))


OPTIONAL = {"torch": lambda i: plain_optional(**i), "torch.compile": lambda i: compiled_optional(**i)}
PEERS = {"torch": torchs, "torch.compile": compiled, "liger": ligers, "quack": quacks, "cce": cuts}


def workload(
    op: str, name: str, sizes: tuple[int, int, int], wrt: tuple[str, ...], every: int = 1, optional: bool = False
) -> Workload:
    rows, width, classes = sizes
    kept = -(-rows // every)
    logprob = op == "linear_logprob"
    hidden, weight, logits = rows * width * 2, classes * width * 2, kept * classes * 2
    product = 2.0 * kept * classes * width
    read = kept * width * 2 + weight
    grads = sum({"hidden": hidden, "weight": weight, "bias": classes * 2}[x] for x in wrt)
    # With gradients, the logits are written and read once: they are needed before and after their log-sum-exp is known,
    # and a second product costs more than their traffic.
    backward = (read + grads + 2 * logits) if wrt else 0
    return Workload(
        op,
        f"{rows} x {width} x {classes}{name}",
        inputs(*sizes, every, "targets" if logprob else "labels", optional),
        wrt,
        (read, backward),
        flops=(product, product * (len({*wrt} - {"bias"}) + logprob)),
        options=(OPTIONS if optional else {}) | ({} if logprob or every == 1 else {"supervised": kept}),
        peers=OPTIONAL if optional else PEERS,
        matrix=("logsumexp_kernel",) if logprob or not wrt else (),
    )


@sized(lambda length, **_: {"rows": length, "every": 1})
def loss(
    rows: int = 8192,
    width: int = WIDTH,
    classes: int = CLASSES,
    every: int = 1,
    frozen_head: bool = False,
    capped: bool = False,
    trained: bool = True,
) -> Workload:
    """Every ``every``-th row has a label; ``capped`` has a bias and is smoothed too; without ``trained`` there is no
    backward."""
    wrt = ("hidden",) if frozen_head else ("hidden", "weight", *(("bias",) if capped else ()))
    words = [
        "frozen head" if frozen_head else "",
        "bias, smoothed and capped" if capped else "",
        "" if trained else "loss alone",
        "" if every == 1 else f"one in {'ten' if every == 10 else every} supervised",
    ]
    name = "".join(f", {word}" for word in words if word)
    return workload("linear_cross_entropy", name, (rows, width, classes), wrt if trained else (), every, capped)


@sized()
def logprob(rows: int = 8192, width: int = WIDTH, classes: int = CLASSES, trained: bool = True) -> Workload:
    wrt = ("hidden", "weight") if trained else ()
    return workload("linear_logprob", "" if trained else ", forward", (rows, width, classes), wrt)


WORKLOADS = [
    loss(),
    loss(frozen_head=True),
    loss(trained=False),
    loss(131_072, every=10),
    loss(capped=True),
    loss(capped=True, trained=False),
    logprob(),
    logprob(trained=False),
]
