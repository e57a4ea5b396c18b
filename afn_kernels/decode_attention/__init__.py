"""Attention of a few new tokens per sequence over a long KV cache."""

import torch

from afn_kernels import _check, _cuda, _device, _triton
from afn_kernels._fp8_scales import FP8, check_scales
from afn_kernels._registry import Impl, Op, constant
from afn_kernels.attention.window import canonical, capping

HALVES = (torch.bfloat16, torch.float16)
CUDA_SHARED = 216 << 10  # bytes of shared memory that the CUDA kernel's ring asks for


def _wants_gradient(*tensors: torch.Tensor | None) -> str:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return "it has no gradient; the reference has"
    return ""


@constant
def _too_small(device: torch.device) -> str:
    if _cuda.emulated():
        return ""
    room = _device.shared(device)
    return "" if room >= CUDA_SHARED else f"the GPU has {room >> 10} KB of shared memory, it needs {CUDA_SHARED >> 10}"


def _supports_cuda(q, k_cache, v_cache, lengths, *, block_table, k_scale, v_scale, window, softcap, scale) -> str:
    if window is not None or softcap:
        return "it has no window and caps no scores"
    rows = q.shape[1] * q.shape[2] // k_cache.shape[2]
    if q.shape[-1] != 128:
        return f"heads of {q.shape[-1]} elements; it has a kernel for 128"
    if rows > 64:
        return f"{q.shape[1]} tokens times {q.shape[2] // k_cache.shape[2]} query heads of a KV head are more than 64"
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        begin = 0 if torch.compiler.is_compiling() else x.storage_offset()  # the launch looks again
        if x.stride(-1) == 1 and any(n * x.element_size() % 16 for n in (*x.stride()[:3], begin)):
            return f"{name} has strides {x.stride()}: its rows do not begin at multiples of 16 bytes"
    tensors = q, k_cache, v_cache, k_scale, v_scale
    elsewhere = _cuda.supports(*tensors, lengths, block_table, dtypes=(*HALVES, FP8, torch.float32))
    return _wants_gradient(*tensors) or _cuda.supports(q, dtypes=HALVES) or elsewhere or _too_small(q.device)


def _supports(q, k_cache, v_cache, lengths, *, block_table, k_scale, v_scale, **_) -> str:
    if reason := _wants_gradient(q, k_cache, v_cache, k_scale, v_scale):
        return reason
    if q.shape[-1] > 256:
        return f"a head of {q.shape[-1]} elements does not fit one program"
    if k_cache.dtype == FP8 and (reason := _device.fp8(q.device)):
        return reason
    tensors = q, k_cache, v_cache, lengths, block_table, k_scale, v_scale
    return _triton.supports(q) or _triton.supports(*tensors, dtypes=(*_triton.DTYPES, FP8))


OP = Op(
    "decode_attention",
    (
        _triton.implementation(
            "afn_kernels.decode_attention.boundary:decode_attention",
            _supports,
            why="one read of the cache, split over the whole machine, one launch",
        ),
        _cuda.implementation(
            "afn_kernels.decode_attention.boundary:decode_attention_cuda",
            _supports_cuda,
            why="as triton, with two tiles of 64 KB in flight on every multiprocessor and equal shares of all keys",
        ),
        Impl("reference", "afn_kernels.decode_attention.reference:decode_attention", why="plain PyTorch"),
    ),
)


def _check_pages(block_table: torch.Tensor, first: torch.Tensor, used: torch.Tensor, pages: int) -> None:
    """Every page that a length reaches is there, but for those before a window; they may be any number."""
    page = torch.arange(block_table.shape[1])
    read = (page < used[:, None]) & (page >= first[:, None])
    bad = ((block_table < 0) | (block_table >= pages)) & read
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        page = int(block_table[row, column])
        raise ValueError(f"decode_attention: page {column} of sequence {row} is {page}, outside the {pages} pages")


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """out = softmax(scale · k_scale · q kᵀ) · v_scale · v over each sequence's cache, causal among the new tokens.

    The cache already holds the new tokens' keys and values: new token i of a sequence sees the first
    lengths[b] − n + 1 + i entries, with a window only the last left + 1 of them. What lies behind lengths[b] is never
    used, whatever it holds; what lies before a window is not read. With a softcap c scores s are c · tanh(s / c).

    The triton and cuda implementations need no host synchronisation and can be captured into a CUDA graph that serves
    every length up to the capacity; there a sequence of length 0 gives zeros. Equal inputs give equal bits, but how the
    context is split depends on all the lengths of the batch. It is fast for one to eight new tokens.

    Args:
        q: [B, n, Hq, D] queries of the n newest tokens, any floating dtype.
        k_cache: [B, capacity, Hk, D], or [pages, page_size, Hk, D] with ``block_table``; dtype of q, or
            float8_e4m3fn.
        v_cache: like k_cache.
        lengths: [B] integer, valid entries of each sequence, the new tokens included.
        block_table: [B, max_pages] integer, the pages of each sequence in order.
        k_scale: float32 [] or [1], or [Hk]: a key is its entry in the cache times this. None is 1.
        v_scale: the same for values.
        window: (left, right) as ``attention`` takes it: left entries before a token's own, −1 without limit. Right has
            no effect: a decode step is causal.
        softcap: c; None and 0 cap nothing.
        scale: multiplier of the scores; default D^(−1/2).
        impl: "auto" or the name of an implementation.

    Returns:
        [B, n, Hq, D], dtype of q.

    Raises:
        ValueError: shapes, dtypes or head counts that do not fit; a length past the capacity (on the CPU).

    Source: Dao, Haziza, Massa and Sizov, Flash-Decoding, 2023; pages as in Kwon et al., 2023, arXiv:2309.06180.
    """
    _check.are_tensors("decode_attention", q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths)
    if k_cache.dtype == FP8:
        _check.alike("decode_attention", k_cache=k_cache, v_cache=v_cache)
        _check.same_dtype_and_device("decode_attention", q=q, cache=k_cache.new_empty(0, dtype=q.dtype))
    else:
        _check.same_dtype_and_device("decode_attention", q=q, k_cache=k_cache, v_cache=v_cache)
    if q.dim() != 4 or k_cache.dim() != 4 or k_cache.shape != v_cache.shape or q.shape[-1] != k_cache.shape[-1]:
        caches = {"k_cache": (k_cache, "P S Hk D"), "v_cache": (v_cache, "P S Hk D")}
        raise _check.misfit("decode_attention", q=(q, "B n Hq D"), **caches)
    if q.shape[2] % k_cache.shape[2]:
        raise ValueError(f"decode_attention: {q.shape[2]} query heads over {k_cache.shape[2]} KV heads")
    if block_table is not None:
        _check.are_tensors("decode_attention", block_table=block_table)
    if block_table is None:
        sequences, capacity = k_cache.shape[:2]
    else:
        if block_table.dim() != 2:
            raise _check.misfit("decode_attention", block_table=(block_table, "B pages"))
        sequences, capacity = len(block_table), block_table.shape[1] * k_cache.shape[1]
    if lengths.dim() != 1:
        raise _check.misfit("decode_attention", lengths=(lengths, "B"))
    if not len(q) == sequences == len(lengths):
        raise ValueError(f"decode_attention: {len(q)} queries, {sequences} caches, {len(lengths)} lengths")
    check_scales("decode_attention", k_cache.shape[2], k_scale=k_scale, v_scale=v_scale)
    if lengths.is_floating_point() or (block_table is not None and block_table.is_floating_point()):
        found = lengths.dtype if block_table is None else f"{lengths.dtype} and {block_table.dtype}"
        raise ValueError(f"decode_attention: lengths and block_table are {found}, expected integers")
    _, window = canonical(True, window, op="decode_attention")
    softcap = capping("decode_attention", softcap)
    known = _check.readable(lengths) and len(lengths)
    if known and not q.shape[1] <= int(lengths.min()):
        raise ValueError(f"decode_attention: length {int(lengths.min())} is below the {q.shape[1]} new tokens")
    if known and int(lengths.max()) > capacity:
        raise ValueError(f"decode_attention: length {int(lengths.max())} is past the capacity {capacity}")
    if block_table is not None and known and _check.readable(block_table):
        hidden = lengths - (capacity if window is None else window[0] + q.shape[1])
        _check_pages(block_table, hidden // k_cache.shape[1], -(-lengths // k_cache.shape[1]), len(k_cache))
    options = {
        "block_table": block_table,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "window": window,
        "softcap": softcap,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
    }
    return OP.choose(impl, q, k_cache, v_cache, lengths, **options)(q, k_cache, v_cache, lengths, **options)
