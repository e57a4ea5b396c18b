import torch

from afn_kernels import _versions

SLICES = _versions.number(torch.__version__) >= (2, 11)  # torch.compile, by a length that it reads from a tensor


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    prefix_lengths: torch.Tensor | None = None,
    split: int = 0,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float,
) -> torch.Tensor:
    if block_table is not None:
        pages = block_table.long().clamp(0, len(k_cache) - 1)  # past a sequence's length a page may be any number
        k_cache, v_cache = (cache[pages].flatten(1, 2) for cache in (k_cache, v_cache))
    if prefix_lengths is not None and len(q):
        members = len(q) // len(prefix_lengths)
        first = torch.arange(len(q), device=q.device) // members * members
        prefix = prefix_lengths.repeat_interleave(members)[:, None]
        shared = torch.arange(k_cache.shape[1], device=q.device) < prefix
        k_cache, v_cache = (torch.where(shared[..., None, None], x[first], x) for x in (k_cache, v_cache))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    new, heads, kv_heads = q.shape[1], q.shape[2], k_cache.shape[2]
    if torch.compiler.is_compiling() and not SLICES:
        used = k_cache.shape[1]
    else:
        used = int(lengths.max()) if len(lengths) else 0
    q_BHXD = (q.to(wide) * scale).unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    k, v = (
        cache[:, :used].to(wide) if factor is None else cache[:, :used].to(wide) * factor.to(wide).reshape(-1, 1)
        for cache, factor in ((k_cache, k_scale), (v_cache, v_scale))
    )
    score = q_BHXD @ k.permute(0, 2, 3, 1)
    if softcap:
        score = softcap * (score / softcap).tanh()
    last_BN = lengths[:, None] - new + torch.arange(new, device=q.device)
    seen_BNK = torch.arange(used, device=q.device) <= last_BN[..., None]
    if window is not None:
        seen_BNK &= torch.arange(used, device=q.device) >= last_BN[..., None] - window[0]
    score = score.unflatten(2, (heads // kv_heads, new)).masked_fill(~seen_BNK[:, None, None], float("-inf"))
    # A stale cache entry may hold anything: 0 · NaN would spread it, so unseen values are zeroed.
    value = v.transpose(1, 2)
    value = value.masked_fill(~seen_BNK.any(1)[:, None, :, None], 0.0)
    out = score.softmax(-1).flatten(2, 3) @ value
    return out.unflatten(2, (heads // kv_heads, new)).permute(0, 3, 1, 2, 4).flatten(2, 3).to(q.dtype)
