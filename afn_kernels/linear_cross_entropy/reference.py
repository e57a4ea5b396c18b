import torch
import torch.nn.functional as F

from afn_kernels.cross_entropy.reference import capped, loss, wide


def wide_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = wide(F.linear(hidden, weight.to(hidden.dtype)))
    return logits if bias is None else logits + bias


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    reduction: str,
    supervised: int | None,
    **options,
) -> torch.Tensor:
    wanted = labels != options["ignore_index"]
    count = wanted.sum().clamp(min=1)
    kept, rows = None, len(labels)
    told = supervised is not None and labels.device.type != "cpu"  # where asking would wait for the device
    if told and not torch.compiler.is_compiling():
        right = wanted.sum() == supervised
        kept = (~wanted).argsort(stable=True)[:supervised]
        hidden, labels = torch.where(right, hidden[kept], float("nan")), labels[kept]
    elif not torch.compiler.is_compiling():  # a graph's shapes cannot depend on the labels: it goes through all rows
        kept = wanted.nonzero().squeeze(1)
        hidden, labels = hidden[kept], labels[kept]
    else:  # whatever is in a row without a label stays out of the weight's gradient
        hidden = torch.where(wanted[:, None], hidden, 0.0)
    how = "none" if reduction == "none" else "sum"
    found = loss(wide_logits(hidden, weight, bias), labels, reduction=how, **options)
    if reduction == "none":
        return found if kept is None else found.new_zeros(rows).index_copy(0, kept, found)
    return found / count if reduction == "mean" else found


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    return -F.cross_entropy(capped(wide_logits(hidden, weight, bias), softcap), targets, reduction="none")
