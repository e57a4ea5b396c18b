import torch

from afn_kernels.quantize_fp8.layout import scale_layout

LARGEST, LEAST = 448.0, 2.0**-126


def quantize_fp8(x: torch.Tensor, *, height: int, width: int, transpose: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = (x.detach().T if transpose else x.detach()).float()
    rows, columns = x.shape
    height_, width_ = height or max(rows, 1), width or max(columns, 1)
    down, across = -(-rows // height_), -(-columns // width_)
    padded = torch.nn.functional.pad(x, (0, across * width_ - columns, 0, down * height_ - rows))
    blocks = padded.abs().view(down, height_, across, width_)
    largest = blocks.amax((1, 3)) if x.numel() else x.new_zeros(down, across)
    scale = (largest / LARGEST).clamp(min=LEAST)
    per_row = (1 / scale).repeat_interleave(height_, 0)[:rows].repeat_interleave(width_, 1)[:, :columns]
    codes = (x * per_row).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    shape, strides = scale_layout(rows, columns, height, width)
    out = torch.empty_strided(shape, strides, dtype=torch.float32, device=x.device)
    if not scale.numel():
        return codes.contiguous(), out.fill_(LEAST)
    return codes.contiguous(), out.copy_(scale.reshape(shape))
