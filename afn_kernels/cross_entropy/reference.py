import torch
import torch.nn.functional as F


def wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    softcap: float | None,
    z_loss: float,
    reduction: str,
) -> torch.Tensor:
    """Of logits [T, V] in float32 or float64, the reduction "sum" or "none"."""
    logits = capped(logits, softcap)
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    found = F.cross_entropy(logits, labels, **options)
    if z_loss:
        squares = torch.where(labels != ignore_index, logits.logsumexp(-1), 0.0).square()
        found = found + z_loss * (squares if reduction == "none" else squares.sum())
    return found


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str, **options) -> torch.Tensor:
    rows, targets = wide(logits).reshape(-1, logits.shape[-1]), labels.flatten()
    # The derivative of a row that is ignored is 0 times its softmax, which may be NaN.
    rows = rows.masked_fill((targets == options["ignore_index"])[:, None], 0.0)
    found = loss(rows, targets, reduction="none" if reduction == "none" else "sum", **options)
    if reduction == "none":
        return found.view(labels.shape)
    return found / (labels != options["ignore_index"]).sum().clamp(min=1) if reduction == "mean" else found
