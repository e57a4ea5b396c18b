import torch


def residual_quantize(
    x: torch.Tensor, codebooks: torch.Tensor, *, levels: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    codes = torch.full((len(x), len(codebooks)), -1, dtype=torch.int64, device=x.device)
    x, total = x.to(wide), torch.zeros(x.shape, dtype=wide, device=x.device)
    for level, book in enumerate(codebooks):
        entries = book.to(wide)
        far = entries.square().sum(1) - 2 * ((x - total) @ entries.T)
        nearest = torch.where(far.isnan(), torch.inf, far).argmin(1)  # the first of those as near
        active = (first <= level) & (level < levels)
        codes[:, level] = torch.where(active, nearest, -1)
        total = torch.where(active[:, None], total + entries[nearest], total)
    return codes, total
