"""Packed variable-length attention with grouped query heads."""

from contextlib import nullcontext
from typing import Literal, overload

import torch

from afn_kernels import _autocast, _cache_attention, _check, _cuda, _triton
from afn_kernels._registry import Impl, Op
from afn_kernels.attention import checks, hopper, providers
from afn_kernels.attention.arguments import only_its_own
from afn_kernels.attention.schedule import (
    CUDA_BACKWARD,
    TRITON_BACKWARD,
    AttentionSchedule,
    MadeFrom,
    savable,
    tile_of,
)
from afn_kernels.attention.window import canonical, capping
from afn_kernels.cpu import avoid as _outside_inference
from afn_kernels.cpu import usable, wants_gradient


def _dense_supports(q, k, v, *, return_lse, carry, **_) -> str:
    return "" if not return_lse and carry is None else "it returns no log-sum-exp"


def _fused_supports(q, k, v, *, softcap=0.0, **options) -> str:
    return "PyTorch's fused attention caps no scores" if softcap else _dense_supports(q, k, v, **options)


def _supports_cpu(q, k, v, **options) -> str:
    return _cache_attention.supports(q, k) or _dense_supports(q, k, v, **options) or wants_gradient(q, k, v)


def _avoid_cpu(q, k, v, *, causal=False, **_) -> str:
    if reason := _outside_inference():
        return reason
    level = _cache_attention.level()
    if level == "avx512" or (level == "avx2" and causal):
        return ""
    return f"PyTorch's fused attention is the faster where the instruction set is {level}"


def _supports(q, k, v, *, cu_seqlens_q=None, cu_seqlens_k=None, scale=1.0, carry=None, **_) -> str:
    if q.shape[-1] % 16 or not 0 < q.shape[-1] <= 256:
        return f"a head of {q.shape[-1]} is not a multiple of 16 up to 256"
    if scale <= 0:
        return f"the scale {scale} is not above zero, and the maximum of the scores is taken before it"
    return _triton.supports(q, k, v, cu_seqlens_q, cu_seqlens_k, *(carry or ()))


def _supports_cuda(q, k, v, **options) -> str:
    return hopper.supports(q, **options) or _cuda.supports(q, k, v, dtypes=providers.HALF)


def _provider(name: str, why: str, supports, module: str = "torch", avoid=providers.nothing) -> Impl:
    target = f"afn_kernels.attention.provided:{name}"
    return Impl(name, target, providers.available(module), supports, avoid, why, providers.never(name))


# On a GPU the order follows published figures for an H100 until bench/results has measured ones.
OP = Op(
    "attention",
    (
        _provider(
            "flash3",
            "616 to 685 TFLOP/s forward published for an H100; not timed here",
            providers.supports_flash3,
            module="flash_attn_interface",
        ),
        _provider(
            "flash4",
            "the algorithm of FlashAttention 3 in another language, and of Blackwell; not timed here",
            providers.supports_flash4,
            module="flash_attn.cute",
        ),
        _provider(
            "cudnn",
            "539 to 607 TFLOP/s published, for shapes that come often enough for a plan; not timed here",
            providers.supports_cudnn,
            avoid=providers.avoid_cudnn,
        ),
        _provider(
            "varlen",
            "PyTorch's FlashAttention 2 for packed sequences; not timed here",
            providers.supports_varlen,
            module="torch.nn.attention.varlen",
            avoid=providers.avoid_varlen,
        ),
        _cuda.implementation(
            "afn_kernels.attention.boundary:attention_cuda",
            _supports_cuda,
            available=_cuda.hopper,
            why="heads of 64 and 128 on Hopper with the overlap of FlashAttention 3, for any lengths of a captured "
            "CUDA graph; not timed",
        ),
        _triton.implementation(
            "afn_kernels.attention.boundary:attention",
            _supports,
            why="deterministic, never waits for the GPU, for any lengths of a captured CUDA graph; not timed",
        ),
        _provider(
            "flash",
            "PyTorch's FlashAttention 2 for one sequence; not timed here",
            providers.supports_flash,
            avoid=providers.unmeasured,
        ),
        Impl(
            "cpu",
            "afn_kernels.attention.boundary:attention_cpu",
            available=usable,
            supports=_supports_cpu,
            avoid=_avoid_cpu,
            why="compiled SIMD kernel without padding; bits of a query depend on nothing beside its sequence",
        ),
        Impl(
            "sdpa",
            "afn_kernels.attention.dense:sdpa",
            supports=_fused_supports,
            why="PyTorch's fused attention on the padded batch; the fastest on a CPU that has a gradient",
        ),
        Impl(
            "matmul",
            "afn_kernels.attention.dense:matmul",
            supports=_dense_supports,
            why="batched matrix products, 1.2 to 7 times slower (bench/results/cpu/attention.jsonl)",
        ),
        Impl("reference", "afn_kernels.attention.reference:attention", why="plain PyTorch, one sequence at a time"),
    ),
)


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    carry: None = None,
    schedule: AttentionSchedule | None = None,
    impl: str = "auto",
) -> torch.Tensor: ...


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
    carry: tuple[torch.Tensor, torch.Tensor] | None = None,
    schedule: AttentionSchedule | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    carry: tuple[torch.Tensor, torch.Tensor],
    schedule: AttentionSchedule | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    carry: tuple[torch.Tensor, torch.Tensor] | None = None,
    schedule: AttentionSchedule | None = None,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


@only_its_own
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    carry: tuple[torch.Tensor, torch.Tensor] | None = None,
    schedule: AttentionSchedule | None = None,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """out = softmax(scale · q kᵀ + mask) v within each packed sequence; query head h reads KV head h // (Hq / Hk).

    Causal masking is aligned at the end: query i of a sequence with nq queries and nk keys sees keys up to
    i + nk − nq, and with a window only those from i + nk − nq − left to i + nk − nq + right. Blocks of keys outside of
    a window are not read. With a softcap c scores s are c · tanh(s / c) before the mask. A query without any key gives
    zeros and a log-sum-exp of −inf.

    On a GPU other libraries' kernels serve 16-bit calls, log-sum-exp, carry and backward included: with ``impl="auto"``
    flash-attn-3 and then flash-attn-4 on Hopper where one is installed, cuDNN for sequences of one length whose shape
    has come often enough for its plan, PyTorch's FlashAttention 2 for packed ones, and then the kernel of this library.
    ``afn_kernels.explain`` says which, and why. What one of them refuses when it is called runs in our own kernel, with
    one warning; a named one raises.

    Args:
        q: [Tq, Hq, D], any floating dtype; or [B, Tq, Hq, D], B sequences of one length, without boundaries.
        k: [Tk, Hk, D], same dtype; Hq is a multiple of Hk. [B, Tk, Hk, D] where q has a B.
        v: like k.
        cu_seqlens_q: [N + 1] int32 boundaries of the query sequences; None means one sequence. On a GPU "varlen" and
            "flash3" ask for the longest once per tensor, until PyTorch counts a write to it: what a collective, a
            kernel by address or ``.data`` wrote into boundaries that were used before must be passed as a clone.
        cu_seqlens_k: [N + 1] int32 boundaries of the key sequences; None means those of the queries.
        causal: mask keys that come after the query.
        window: (left, right), how many keys before and after its own a query sees; −1 has no limit. With ``causal``
            right is 0. Not with a carry, whose keys have no place in it.
        softcap: c; None and 0 cap nothing.
        scale: multiplier of the scores; default D^(−1/2).
        return_lse: also return the log-sum-exp of the scaled, capped scores.
        carry: (out [Tq, Hq, D] float32, lse [Tq, Hq] float32) over other keys, which this call continues from:
            the result is attention over both sets of keys. Implies ``return_lse`` and a float32 output.
        schedule: of ``attention_schedule``, for calls that share boundaries; ``cu_seqlens`` may then be left out.
            Calls with windows of any size share it with calls without. Without one, every call of "triton" makes its
            tables on the device.
        impl: "auto" or the name of an implementation.

    Under torch.autocast q, k and v are cast to its dtype, as for scaled_dot_product_attention.

    Returns:
        out [Tq, Hq, D] in the dtype of q, or [B, Tq, Hq, D]; with ``return_lse`` also lse float32 of the same axes but
        the last (natural logarithm).

    Raises:
        ValueError: shapes, dtypes or head counts that do not fit; boundaries that do not cover the tensors; a schedule
            of another batch; a window with a carry.
        TypeError: names and places that arguments have in other libraries, with those that they have here.

    Source: Vaswani et al., 2017, arXiv:1706.03762; merging by log-sum-exp: Liu et al., 2023, arXiv:2310.01889; windows:
    Beltagy et al., 2020, arXiv:2004.05150; capped scores: Gemma Team, 2024, arXiv:2408.00118.
    """
    q, k, v = _autocast.lower(q, k, v)
    _check.same_dtype_and_device("attention", q=q, k=k, v=v)
    batch = q.shape[:2] if q.dim() == 4 else None
    if batch is not None:
        q, k, v, cu_seqlens_q, cu_seqlens_k = _as_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, carry, schedule)
    cu_seqlens_q, cu_seqlens_k = checks.boundaries(
        "attention", q, k, v, cu_seqlens_q, cu_seqlens_k, causal, schedule, ours=batch is not None
    )
    if carry is not None:
        if carry[0].shape != q.shape or carry[1].shape != q.shape[:2]:
            raise _check.misfit("attention", q=(q, "T H D"), carried=(carry[0], "T H D"), lse=(carry[1], "T H"))
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        if any(x.dtype != wide or x.device != q.device for x in carry):
            found = ", ".join(f"{x.dtype} on {x.device}" for x in carry)
            raise ValueError(f"attention: the carry is {found}, expected {wide} on {q.device}")
        if window is not None:
            raise ValueError("attention: a window with a carry: the carry's keys have no place before or after others")
    causal, window = canonical(causal, window)
    softcap = capping("attention", softcap)
    options = {
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "return_lse": return_lse,
        "carry": carry,
        "schedule": schedule,
        "named": impl != "auto",
    }
    if q.is_cuda and not torch.compiler.is_compiling():
        providers.met(q, k, cu_seqlens_q, cu_seqlens_k, causal)
    found = OP.choose(impl, q, k, v, **options)(q, k, v, **options)
    if batch is None:
        return found
    return tuple(x.unflatten(0, batch) for x in found) if isinstance(found, tuple) else found.unflatten(0, batch)


def _as_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, carry, schedule) -> tuple:
    """[B, T, H, D] end to end, and the boundaries; views where the memory allows it."""
    if k.dim() != 4 or k.shape != v.shape or len(k) != len(q):
        raise checks.misfit("attention", q, k, v)
    given = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "carry": carry, "schedule": schedule}
    if names := [name for name, x in given.items() if x is not None]:
        packed = "which is for packed [T, H, D]: x.flatten(0, 1)"
        raise ValueError(f"attention: q is [B, T, H, D] {tuple(q.shape)} and comes with {names[0]}, {packed}")
    if len(q) != 1:
        cu_seqlens_q = cu_seqlens_k = _equal_lengths(q)
        if k.shape[1] != q.shape[1]:
            cu_seqlens_k = _equal_lengths(k)
    return *(x.flatten(0, 1) for x in (q, k, v)), cu_seqlens_q, cu_seqlens_k


def _equal_lengths(x: torch.Tensor) -> torch.Tensor:
    cu_seqlens = torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * x.shape[1]
    if not torch.compiler.is_compiling():
        providers.remember(cu_seqlens, x.shape[1])
    return cu_seqlens


def attention_schedule(
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None = None,
    *,
    total_q: int,
    total_k: int | None = None,
    head_dim: int,
    dtype: torch.dtype,
    causal: bool = False,
    return_lse: bool = False,
    longest: int | None = None,
    impl: str = "auto",
) -> AttentionSchedule:
    """What the layers of a model would each work out again from the same boundaries, made once per forward pass.

    table[i] = (first query, queries, first key, keys, block) of the tile with the i-th most query-key pairs: what the
    "triton" implementation reads, and "cuda", which has tiles of its own. Tables are made on the device, without
    waiting for it, those of the backward only where gradients are enabled. For another implementation the schedule
    holds boundaries alone. Inside a captured CUDA graph it follows boundaries that change between replays if it is made
    inside too.

    Args:
        cu_seqlens_q: [N + 1] int32, as ``attention`` takes it. A call refuses a schedule whose boundaries were written
            to since, if it can tell: on a GPU not what PyTorch counts as no write (a collective's, ``.data``) nor
            boundaries of inference mode, and nothing under torch.compile.
        cu_seqlens_k: [N + 1] int32; None means those of the queries.
        total_q: queries in all, len(q) of the calls.
        total_k: keys in all; None means ``total_q``.
        head_dim: D of the calls.
        dtype: of the calls' q, k and v. Calls of another dtype or D are right too, and make their own tables.
        causal: as in the calls.
        return_lse: whether the calls return the log-sum-exp or have a carry.
        longest: the longest sequence of queries, where the host knows it: other libraries' kernels ask for it, and
            would wait for the GPU once.
        impl: as in the calls.

    Returns:
        What ``attention`` and ``attention_backward`` take as ``schedule``.

    Raises:
        ValueError: boundaries that do not cover the totals, a ``head_dim`` below 1, a dtype that is not floating, or an
            ``impl`` that cannot run such calls.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"attention_schedule: dtype={dtype}, expected a floating dtype")
    if not isinstance(head_dim, (int, torch.SymInt)) or head_dim < 1:
        raise ValueError(f"attention_schedule: head_dim={head_dim}, expected a number above zero")
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    total_k = total_q if total_k is None else total_k
    _check.cu_seqlens("attention_schedule", "cu_seqlens_q", cu_seqlens_q, total_q)
    _check.cu_seqlens("attention_schedule", "cu_seqlens_k", cu_seqlens_k, total_k)
    if longest is not None and not torch.compiler.is_compiling():
        providers.note_longest(cu_seqlens_q, longest)
    like = cu_seqlens_q.new_empty(0, 1, head_dim, dtype=dtype)
    options = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "causal": causal, "scale": 1.0}
    options |= {"return_lse": return_lse, "carry": None, "schedule": None, "window": None, "softcap": 0.0}
    kernels = {"triton": ("forward", *(("carry",) if return_lse else ())), "cuda": ("cuda",)}
    kernels = kernels.get(picked := OP.pick(impl, like, like, like, **options).name, ())
    if kernels and torch.is_grad_enabled():
        kernels += TRITON_BACKWARD if picked == "triton" else CUDA_BACKWARD
    made_from, mode = None, nullcontext()
    if not torch.compiler.is_compiling():  # what is traced has no mode of its own and counts no writes
        made_from, mode = MadeFrom.now(cu_seqlens_q, cu_seqlens_k), torch.inference_mode(False)
    with mode:  # a backward can save nothing that is made in inference mode, and calls with gradients may follow
        if made_from is not None:
            same = cu_seqlens_k is cu_seqlens_q
            cu_seqlens_q = savable(cu_seqlens_q)
            cu_seqlens_k = cu_seqlens_q if same else savable(cu_seqlens_k)
        boundaries = cu_seqlens_q, cu_seqlens_k, causal, total_q, total_k
        tables = AttentionSchedule(*boundaries).of(kernels, head_dim, dtype)
    tiles = [tile_of(kernel, head_dim, dtype, cu_seqlens_q.device) for kernel in kernels]
    return AttentionSchedule(*boundaries, dict(zip(tiles, tables, strict=True)), made_from)
