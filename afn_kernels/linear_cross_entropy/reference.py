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
    kept = (labels != ignore_index).nonzero().squeeze(1)
    logits = wide_logits(hidden[kept], weight)
    total = F.cross_entropy(logits, labels[kept], reduction="sum")
    if z_loss:
        total = total + z_loss * logits.logsumexp(-1).square().sum()
    return total / max(len(kept), 1) if reduction == "mean" else total


def linear_logprob(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(wide_logits(hidden, weight), targets, reduction="none")
