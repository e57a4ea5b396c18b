import torch

from afn_kernels.rotary.reference import rotary


def pack_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: tuple[tuple[int, int, int, int], ...],
    *,
    positions: torch.Tensor | None,
    inv_freq: torch.Tensor | None,
) -> torch.Tensor:
    if positions is not None:
        plain = {"interleaved": False, "v": None, "k_cache": None, "v_cache": None, "slots": None}
        q, k = rotary(q, k, positions, inv_freq, **plain)
    parts = [torch.cat((q[:, a:b], k[:, c:d], v[:, c:d]), 1) for a, b, c, d in heads]
    return torch.cat([part.reshape(-1) for part in parts])


def unpack_heads(flat: torch.Tensor, heads: tuple[tuple[int, int, int, int], ...], head_dim: int) -> torch.Tensor:
    tokens = flat.numel() // (heads[-1][1] * head_dim)
    counts = [b - a for a, b, _, _ in heads]
    parts = flat.split([tokens * count * head_dim for count in counts])
    return torch.cat([part.view(tokens, count, head_dim) for part, count in zip(parts, counts, strict=True)], 1)
