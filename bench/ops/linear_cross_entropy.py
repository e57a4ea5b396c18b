"""The head of the language model: 151,672 classes of 3,584, trainable or frozen, and packed text with few labels."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal

WIDTH, CLASSES = 3584, 151_672
IGNORE = -100


def inputs(rows: int, every: int = 1, labels: str = "labels", bias: bool = False):
    """Every ``every``-th row has a label."""

    def make(device: str, dtype: torch.dtype):
        made = torch.randint(0, CLASSES, (rows,), device=device)
        if every > 1:
            made[torch.arange(rows, device=device) % every != 0] = IGNORE
        return {
            "hidden": normal(rows, WIDTH, device=device, dtype=dtype),
            "weight": normal(CLASSES, WIDTH, device=device, dtype=dtype) * WIDTH**-0.5,
            labels: made,
            **({"bias": normal(CLASSES, device=device, dtype=dtype)} if bias else {}),
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
    rows: int, name: str, wrt: tuple[str, ...], every: int = 1, op: str = "linear_cross_entropy", optional: bool = False
) -> Workload:
    kept = -(-rows // every)
    logprob = op == "linear_logprob"
    label = "targets" if logprob else "labels"
    hidden, weight, logits = rows * WIDTH * 2, CLASSES * WIDTH * 2, kept * CLASSES * 2
    product = 2.0 * kept * CLASSES * WIDTH
    read = kept * WIDTH * 2 + weight
    grads = sum({"hidden": hidden, "weight": weight, "bias": CLASSES * 2}[x] for x in wrt)
    # With gradients, the logits are written and read once: they are needed before and after their log-sum-exp is known,
    # and a second product costs more than their traffic.
    backward = (read + grads + 2 * logits) if wrt else 0
    return Workload(
        op,
        f"{rows} x {WIDTH} x {CLASSES}{name}",
        inputs(rows, every, label, optional),
        wrt,
        (read, backward),
        flops=(product, product * (len({*wrt} - {"bias"}) + logprob)),
        options=(OPTIONS if optional else {}) | ({} if logprob or every == 1 else {"supervised": kept}),
        at=lambda rows: inputs(rows, 1, label, optional),
        peers=OPTIONAL if optional else PEERS,
        matrix=("logsumexp_kernel",) if logprob or not wrt else (),
    )


BOTH = ("hidden", "weight")
WORKLOADS = [
    workload(8192, "", BOTH),
    workload(8192, ", frozen head", ("hidden",)),
    workload(8192, ", loss alone", ()),
    workload(131_072, ", one in ten supervised", BOTH, every=10),
    workload(8192, ", bias, smoothed and capped", (*BOTH, "bias"), optional=True),
    workload(8192, ", bias, smoothed and capped, loss alone", (), optional=True),
    workload(8192, "", BOTH, op="linear_logprob"),
    workload(8192, ", forward", (), op="linear_logprob"),
]
