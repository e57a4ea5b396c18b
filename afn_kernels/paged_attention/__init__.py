"""Attention of many new tokens per sequence over a paged KV cache: chunked prefill, and cached prefixes."""

import torch

from afn_kernels import _cache_attention, _check, _cuda, _device, _triton
from afn_kernels._fp8_scales import FP8, check_scales
from afn_kernels._registry import Impl, Op
from afn_kernels.attention import hopper, providers
from afn_kernels.attention.window import canonical, capping
from afn_kernels.cpu import usable


def _supports(q, k_cache, v_cache, *, block_table, cu_seqlens_q, lengths, k_scale, v_scale, scale=1.0, **_) -> str:
    if q.shape[-1] % 16 or not 0 < q.shape[-1] <= 256:
        return f"a head of {q.shape[-1]} is not a multiple of 16 up to 256"
    if k_cache.dtype == FP8 and (reason := _device.fp8(q.device)):
        return reason
    if scale <= 0:
        return f"the scale {scale} is not above zero, and the maximum of the scores is taken before it"
    tensors = q, k_cache, v_cache, block_table, cu_seqlens_q, lengths, k_scale, v_scale
    return _triton.supports(q) or _triton.supports(*tensors, dtypes=(*_triton.DTYPES, FP8))


def _supports_cuda(q, k_cache, v_cache, *, k_scale, v_scale, **options) -> str:
    page = k_cache.shape[1]
    if reason := hopper.supports(q, **options):
        return reason
    if k_scale is not None or v_scale is not None:
        return "it takes no scales"
    if not page or page % 8 or (hopper.KEYS % page and page % hopper.KEYS):
        return (
            f"pages of {page} do not divide blocks of {hopper.KEYS} keys by rows of 8, nor are they multiples of them"
        )
    return _cuda.supports(q, k_cache, v_cache, dtypes=providers.HALF)


def _supports_cpu(q, k_cache, v_cache, *, k_scale, v_scale, **_) -> str:
    return _cache_attention.supports(q, k_cache, k_scale, v_scale)


OP = Op(
    "paged_attention",
    (
        _cuda.implementation(
            "afn_kernels.paged_attention.boundary:paged_attention_cuda",
            _supports_cuda,
            available=_cuda.hopper,
            why="the forward of attention on Hopper by hand, pages fetched by tensor copies; not timed",
        ),
        _triton.implementation(
            "afn_kernels.paged_attention.boundary:paged_attention",
            _supports,
            why="reads the pages where they are, tiles with most keys first, never waits for the GPU; not timed",
        ),
        Impl(
            "cpu",
            "afn_kernels.paged_attention.boundary:paged_attention_cpu",
            available=usable,
            supports=_supports_cpu,
            why="compiled SIMD kernel; bits of a token depend on nothing beside it, and are those of decode_attention",
        ),
        Impl("reference", "afn_kernels.paged_attention.reference:paged_attention", why="plain PyTorch, pages gathered"),
    ),
)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    lengths: torch.Tensor,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """out = softmax(scale · k_scale · q kᵀ + mask) · v_scale · v of packed new tokens over each sequence's pages.

    The cache already holds the new tokens' keys and values, as its last entries: new token i of a sequence with n new
    tokens and length L sees its first L − n + 1 + i entries, with a window only the last left + 1 of them. Nothing is
    copied out of the pages, whatever part of a prompt was computed before. What lies behind a length is never used,
    whatever it holds; what lies before a window is not read. With a softcap c scores s are c · tanh(s / c). A token
    without any entry gives zeros.

    For a few new tokens per sequence ``decode_attention`` is faster: it splits the context. Lengths, pages and
    boundaries may change without a new compilation, and between replays of a captured CUDA graph.

    The cpu implementation gives a token the bits that ``decode_attention`` gives it there, whether its prompt is
    computed whole or in chunks of any size. Of float32 and bfloat16.

    Args:
        q: [T, Hq, D] queries of the new tokens, one sequence after the other, any floating dtype.
        k_cache: [pages, page_size, Hk, D], dtype of q, or float8_e4m3fn; Hq is a multiple of Hk.
        v_cache: like k_cache.
        block_table: [N, max_pages] integer, the pages of each sequence in order.
        cu_seqlens_q: [N + 1] int32 boundaries of the new tokens.
        lengths: [N] integer, valid entries of each sequence, the new tokens included.
        k_scale: float32 [] or [1], or [Hk]: a key is its entry in the cache times this. None is 1.
        v_scale: the same for values.
        causal: mask entries after a token's own; False lets every new token see all of them.
        window: (left, right) as ``attention`` takes it.
        softcap: c; None and 0 cap nothing.
        scale: multiplier of the scores; default D^(−1/2).
        impl: "auto" or the name of an implementation.

    Returns:
        [T, Hq, D], dtype of q.

    Raises:
        ValueError: shapes, dtypes or head counts that do not fit; a length past the pages or below its new tokens, and
            a page that is not there (on the CPU); a tensor that wants a gradient, which there is none for.

    Source: pages as in Kwon et al., 2023, arXiv:2309.06180; the kernel as Dao, 2023, arXiv:2307.08691.
    """
    name = "paged_attention"
    _check.are_tensors(name, q=q, k_cache=k_cache, v_cache=v_cache)
    for what, x in (("block_table", block_table), ("lengths", lengths)):
        _check.beside(name, what, x, q)
        _check.integers(name, what, x)
    if k_cache.dtype == FP8:
        _check.alike(name, k_cache=k_cache, v_cache=v_cache)
        _check.same_dtype_and_device(name, q=q, cache=k_cache.new_empty(0, dtype=q.dtype))
    else:
        _check.same_dtype_and_device(name, q=q, k_cache=k_cache, v_cache=v_cache)
    if q.dim() != 3 or k_cache.dim() != 4 or k_cache.shape != v_cache.shape or q.shape[-1] != k_cache.shape[-1]:
        caches = {"k_cache": (k_cache, "P S Hk D"), "v_cache": (v_cache, "P S Hk D")}
        raise _check.misfit(name, q=(q, "T Hq D"), **caches)
    if not k_cache.shape[2] or q.shape[1] % k_cache.shape[2]:
        raise ValueError(f"{name}: {q.shape[1]} query heads over {k_cache.shape[2]} KV heads")
    _check.cu_seqlens(name, "cu_seqlens_q", cu_seqlens_q, q.shape[0], q)
    sequences = len(cu_seqlens_q) - 1
    if block_table.dim() != 2 or lengths.dim() != 1 or not len(block_table) == len(lengths) == sequences:
        shapes = {"block_table": (block_table, "N pages"), "lengths": (lengths, "N")}
        raise _check.misfit(name, **shapes, cu_seqlens_q=(cu_seqlens_q, "N+1"))
    _check.beside(name, "cu_seqlens_q", cu_seqlens_q, q)
    for what, x in (("k_scale", k_scale), ("v_scale", v_scale)):
        if x is not None:
            _check.beside(name, what, x, q)
    check_scales(name, k_cache.shape[2], k_scale=k_scale, v_scale=v_scale)
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k_cache, v_cache, k_scale, v_scale)
    ):
        raise ValueError(f"{name}: it has no backward; use torch.no_grad(), or attention with the pages gathered")
    causal, window = canonical(causal, window, op=name)
    softcap = capping(name, softcap)
    _check_lengths(block_table, cu_seqlens_q, lengths, k_cache, causal, window)
    options = {
        "block_table": block_table,
        "cu_seqlens_q": cu_seqlens_q,
        "lengths": lengths,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
    }
    return OP.choose(impl, q, k_cache, v_cache, **options)(q, k_cache, v_cache, **options)


def _check_lengths(block_table, cu_seqlens_q, lengths, k_cache, causal: bool, window) -> None:
    """Lengths hold their new tokens, and the pages that are read are there; looked at only where that is free."""
    if not (_check.readable(lengths) and _check.readable(cu_seqlens_q) and len(lengths)):
        return
    left, right = (-1, 0) if window is None else window
    here = {"table": block_table, "bounds": cu_seqlens_q.contiguous(), "causal": causal, "left": left, "right": right}
    if _check.readable(block_table) and _cache_attention.fits(k_cache, lengths, k_cache.shape[2], **here):
        return
    page, new = k_cache.shape[1], cu_seqlens_q.diff()
    if (short := (lengths < new).nonzero()).numel():
        row = int(short[0])
        raise ValueError(f"paged_attention: length {int(lengths[row])} is below the {int(new[row])} new tokens")
    if int(lengths.max()) > block_table.shape[1] * page:
        found = f"length {int(lengths.max())} is past the {block_table.shape[1]} pages of {page}"
        raise ValueError(f"paged_attention: {found} of a sequence")
    if not _check.readable(block_table):
        return
    column = torch.arange(block_table.shape[1], device=lengths.device) * page
    first = torch.zeros_like(lengths) if window is None else lengths - new - window[0]
    read = (column < lengths[:, None]) & (column + page > first[:, None]) & (new > 0)[:, None]
    bad = ((block_table < 0) | (block_table >= len(k_cache))) & read
    if bad.any():
        row, at = bad.nonzero()[0].tolist()
        found = f"page {at} of sequence {row} is {int(block_table[row, at])}"
        raise ValueError(f"paged_attention: {found}, outside the {len(k_cache)} pages")
