"""Where scores that are NaN or infinite come from. Looked for only when there are some."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


class NotFiniteError(ValueError):
    """Scores that are NaN or infinite, with the number of the prompt that they answer."""

    def __init__(self, problem: str, prompt: int):
        super().__init__(problem)
        self.prompt = prompt


@torch.no_grad()
def first_not_finite(model: Network, batch: Batch, tokens: list[list[int]]) -> str:
    """The first tensor on the way to the scores that holds NaN or Inf, in words.

    A weight is looked for first, by name; then everything is computed once more, and the first module is named whose
    output is not finite.

    Args:
        model: the model.
        batch: packed prompts.
        tokens: what each prompt was answered with so far.
    """
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if bad := not_finite(weight):
            return f"{name} holds {bad}"
    if batch.pcm is not None and (bad := not_finite(batch.pcm)):
        return f"the recordings hold {bad}"
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and any(not_finite(x) for x in tensors_of(output)):
            found.append(name)

    def hook(name: str) -> Any:
        return lambda module, given, output: look(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        prompts = batch.input_ids.cpu().split(batch.cu_seqlens.diff().tolist())
        pieces = [torch.cat((ids, ids.new_tensor(said))) for ids, said in zip(prompts, tokens, strict=True)]
        lengths = torch.tensor([0, *map(len, pieces)])
        again = replace(batch, input_ids=torch.cat(pieces), cu_seqlens=lengths.cumsum(0).to(torch.int32))
        hidden, _ = model.hidden(again)
        model.lm_head(hidden[again.cu_seqlens[1:].long().to(hidden.device) - 1])
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"all weights are finite, and the first output that is not is that of {found[0]}"
    return "weights and outputs are finite when computed once more, so look at the repetition penalty and the device"


def tensors_of(output: Any) -> list[Tensor]:
    outputs = output if isinstance(output, (tuple, list)) else [output]
    return [x for x in outputs if isinstance(x, Tensor) and x.is_floating_point()]


def not_finite(x: Tensor) -> str:
    """What a tensor holds that is no number: '' where there is nothing of the kind."""
    if not x.is_floating_point() or bool(torch.isfinite(x).all()):
        return ""
    kind = "NaN" if bool(torch.isnan(x).any()) else "Inf"
    count = x.numel() - int(torch.isfinite(x).sum())
    return f"{kind}, {count:,} of {x.numel():,} values"
