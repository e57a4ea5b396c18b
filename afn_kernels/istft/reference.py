import torch
import torch.nn.functional as F

from afn_kernels.istft.windows import synthesis


def istft(
    spectrum: torch.Tensor, window: torch.Tensor, *, hop: int, state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, frames = spectrum.shape[:2]
    size = len(window)
    wide = torch.promote_types(spectrum.dtype, torch.float32)
    bins = torch.view_as_complex(spectrum.to(wide).contiguous())
    parts = -(-size // hop)  # hops that a frame covers
    if bins.numel():
        made = torch.fft.irfft(bins, size) * synthesis(window, hop).to(wide)
    else:  # of nothing MKL has no transform
        made = bins.real.sum().expand(batch, frames, size)
    made = F.pad(made, (0, parts * hop - size)).unflatten(2, (parts, hop))
    shifted = [F.pad(made[:, :, part], (0, 0, part, parts - 1 - part)) for part in range(parts)]
    whole = sum(shifted[1:], shifted[0]).flatten(1)[:, : frames * hop + size - hop]
    if state is not None:
        whole = whole + F.pad(state.to(wide), (0, frames * hop))
    return whole[:, : frames * hop], whole[:, frames * hop :]
