import torch
import torch.nn.functional as F


def wide_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden, weight)
    return logits if logits.dtype == torch.float64 else logits.float()


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int,
    reduction: str,
    z_loss: float,
    supervised: int | None,
) -> torch.Tensor:
    wanted = labels != ignore_index
    count = wanted.sum().clamp(min=1)
    if not torch.compiler.is_compiling():  # a graph's shapes cannot depend on the labels: it goes through all rows
        kept = wanted.nonzero().squeeze(1)
        hidden, labels, wanted = hidden[kept], labels[kept], wanted[kept]
    logits = wide_logits(hidden, weight)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    if z_loss:
        total = total + z_loss * torch.where(wanted, logits.logsumexp(-1), 0.0).square().sum()
    return total / count if reduction == "mean" else total


def linear_logprob(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(wide_logits(hidden, weight), targets, reduction="none")
