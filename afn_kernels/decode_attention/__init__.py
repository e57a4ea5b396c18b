"""Attention of a few new tokens per sequence over a long KV cache."""

import torch

from afn_kernels import _cache_attention, _cuda, _device, _triton
from afn_kernels._fp8_scales import FP8
from afn_kernels._registry import Impl, Op, constant
from afn_kernels.attention.window import canonical, capping
from afn_kernels.cpu import usable, wants_gradient
from afn_kernels.decode_attention.arguments import check_split, check_tensors, check_values, readable
from afn_kernels.decode_attention.config import HEAD_DIMS

HALVES = (torch.bfloat16, torch.float16)
CUDA_SHARED = 226 << 10  # bytes of shared memory that the CUDA kernels ask for at most
# The CUDA kernels' capped scores are off by 1e-6 of the cap at most, in an exponent: of this cap by 2.6e-4, half of
# what the rounding of a weight to float16 is.
CUDA_CAP = 256.0
MOST_SEQUENCES = 64_000  # sequences and groups: an axis of programs ends at 65,535, and some are for the splits


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


def _supports_cuda(
    q, k_cache, v_cache, lengths, *, block_table, k_scale, v_scale, prefix_lengths=None, softcap=0.0, **_
) -> str:  # fmt: skip
    if prefix_lengths is not None:
        return "it shares no prefixes"
    if softcap and softcap > CUDA_CAP:
        return f"softcap={softcap} is above {CUDA_CAP:g}, where its hyperbolic tangent is too rough"
    rows = q.shape[1] * q.shape[2] // k_cache.shape[2]
    if q.shape[-1] not in HEAD_DIMS:
        return f"heads of {q.shape[-1]} elements; it has kernels for {', '.join(map(str, HEAD_DIMS))}"
    if rows > 64:
        return f"{q.shape[1]} tokens times {q.shape[2] // k_cache.shape[2]} query heads of a KV head are more than 64"
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        begin = 0 if torch.compiler.is_compiling() else x.storage_offset()  # the launch looks again
        if x.stride(-1) == 1 and any(n * x.element_size() % 16 for n in (*x.stride()[:3], begin)):
            return f"{name} has strides {x.stride()}: its rows do not begin at multiples of 16 bytes"
    tensors = q, k_cache, v_cache, k_scale, v_scale
    elsewhere = _cuda.supports(*tensors, lengths, block_table, dtypes=(*HALVES, FP8, torch.float32))
    return _wants_gradient(*tensors) or _cuda.supports(q, dtypes=HALVES) or elsewhere or _too_small(q.device)


def _supports(
    q, k_cache, v_cache, lengths, *, block_table, k_scale, v_scale, prefix_lengths=None, window=None, **_
) -> str:  # fmt: skip
    if reason := _wants_gradient(q, k_cache, v_cache, k_scale, v_scale):
        return reason
    if q.shape[-1] > 256:
        return f"a head of {q.shape[-1]} elements does not fit one program"
    if len(q) + (0 if prefix_lengths is None else len(prefix_lengths)) > MOST_SEQUENCES:
        return f"{len(q)} sequences are more than one launch takes, {MOST_SEQUENCES} with the groups"
    if k_cache.dtype == FP8 and (reason := _device.fp8(q.device)):
        return reason
    if prefix_lengths is not None and window is not None:
        return "it shares no prefixes under a window"
    if prefix_lengths is not None and q.shape[1] * q.shape[2] // k_cache.shape[2] > 64:
        return f"{q.shape[1]} tokens times {q.shape[2] // k_cache.shape[2]} query heads of a KV head are more than 64"
    tensors = q, k_cache, v_cache, lengths, prefix_lengths, block_table, k_scale, v_scale
    return _triton.supports(q) or _triton.supports(*tensors, dtypes=(*_triton.DTYPES, FP8))


def _supports_cpu(q, k_cache, v_cache, lengths, *, k_scale, v_scale, **_) -> str:
    reason = wants_gradient(q, k_cache, v_cache, k_scale, v_scale)
    return reason or _cache_attention.supports(q, k_cache, k_scale, v_scale)


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
            why="as triton, with two tiles of up to 64 KB in flight on every multiprocessor, equal shares of all keys",
        ),
        Impl(
            "cpu",
            "afn_kernels.decode_attention.boundary:decode_attention_cpu",
            available=usable,
            supports=_supports_cpu,
            why="compiled SIMD kernel; bits of a row depend on nothing beside it, and are those of paged_attention",
        ),
        Impl("reference", "afn_kernels.decode_attention.reference:decode_attention", why="plain PyTorch"),
    ),
)


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
    split: int | None = None,
    prefix_lengths: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """out = softmax(scale · k_scale · q kᵀ) · v_scale · v over each sequence's cache, causal among the new tokens.

    The cache already holds the new tokens' keys and values: new token i of a sequence sees the first
    lengths[b] − n + 1 + i entries, with a window only the last left + 1 of them. What lies behind lengths[b] is never
    used, whatever it holds; what lies before a window is not read. With a softcap c scores s are c · tanh(s / c).

    The triton and cuda implementations need no host synchronisation and can be captured into a CUDA graph that serves
    every length up to the capacity; there a sequence of length 0 gives zeros. Equal inputs give equal bits. How the
    context is split depends on all the lengths of the batch and on the GPU, unless ``split`` says how: then the bits of
    a sequence's result are the same whatever else is in the batch; with ``prefix_lengths``, whatever other groups are
    in it, as long as groups have as many sequences. It is fast for one to eight new tokens.

    The cpu implementation computes every row and head alone, over the keys in order: the bits of a row are the same
    whatever is beside it, however many threads there are and whether keys are in pages, and they are those of
    ``paged_attention``. It has no use for ``split``. Of float32 and bfloat16.

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
        split: keys per split, a multiple of 16, counted from the first key that is read; None leaves it to the batch.
            The kernels keep a partial result for every split up to the capacity, so 512 to 2,048 is a good size; a
            batch is spread evenly where its splits are many times the GPU's multiprocessors. On the CPU there are none.
        prefix_lengths: [groups] integer: the B sequences are so many groups of equal size, one after another, and those
            of a group begin with the same keys and values, of which this is the number: they are read once for all of
            them, from the group's first sequence (its pages, or its row of the cache; the others may have anything
            there). Eight answers to one prompt are one group. The prefix is read where a sequence of the group is empty
            too, so it must be there, or be 0 keys long where all of them are empty. The triton implementation is faster
            by it where sequences x n x Hq / Hk of a group are at most 64. None shares nothing.
        scale: multiplier of the scores; default D^(−1/2).
        impl: "auto" or the name of an implementation.

    Returns:
        [B, n, Hq, D], dtype of q.

    Raises:
        ValueError: shapes, dtypes, devices or head counts that do not fit; on the CPU also a length past the capacity,
            a page that is not there or a prefix longer than what its sequences have before their new tokens.

    Source: Dao, Haziza, Massa and Sizov, Flash-Decoding, 2023; pages as in Kwon et al., 2023, arXiv:2309.06180; shared
    prefixes: Juravsky et al., 2024, arXiv:2402.05099.
    """
    check_tensors(q, k_cache, v_cache, lengths, block_table, prefix_lengths, k_scale, v_scale)
    _, window = canonical(True, window, op="decode_attention")
    softcap, split = capping("decode_attention", softcap), check_split(split)
    if readable(lengths, block_table, prefix_lengths):
        check_values(q, k_cache, lengths, block_table, prefix_lengths, window)
    options = {
        "block_table": block_table,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "window": window,
        "softcap": softcap,
        "split": split,
        "prefix_lengths": prefix_lengths,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
    }
    return OP.choose(impl, q, k_cache, v_cache, lengths, **options)(q, k_cache, v_cache, lengths, **options)
