"""Tables of the inverse transform: what each frame is multiplied by, and what its backward takes."""

import torch


def overlapped(window: torch.Tensor, hop: int) -> torch.Tensor:
    """Σ_i window[r + i · hop]² for each r below ``hop``: what overlapping frames add up to, in float64."""
    missing = -len(window) % hop
    return torch.nn.functional.pad(window.double().square(), (0, missing)).view(-1, hop).sum(0)


def synthesis(window: torch.Tensor, hop: int) -> torch.Tensor:
    """window[n] / overlapped[n mod hop], [W] float64: the window of the inverse and the constant it is divided by."""
    return window.double() / overlapped(window, hop).repeat(-(-len(window) // hop))[: len(window)]
