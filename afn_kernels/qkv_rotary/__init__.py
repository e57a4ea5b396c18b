"""A decode step's projection to rotated queries and cached keys and values, bias and FP8 included."""

import torch

from afn_kernels import _check, _cuda
from afn_kernels._fp8_scales import FP8, check_scales
from afn_kernels._registry import Impl, Op

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _supports(qkv, positions, inv_freq, k_cache, v_cache, slots, *, bias, k_scale, v_scale) -> str:
    floats = qkv, positions, inv_freq, bias, k_scale, v_scale
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floats):
        return "it is for decoding and has no gradient; the reference has that of q"
    width = k_cache.shape[-1]
    if width > 256 or width % 4:
        return f"heads of {width} elements; it takes multiples of 4 up to 256"
    for name, x in (("qkv", qkv), ("k_cache", k_cache), ("v_cache", v_cache)):
        begin = 0 if torch.compiler.is_compiling() else x.storage_offset()  # the launch looks again
        if x.stride(-1) == 1 and any(n % 2 for n in (*x.stride()[:-1], begin)):
            return f"{name} has strides {x.stride()}: pairs of elements are not aligned"
    angles = _cuda.supports(positions, inv_freq, qkv, dtypes=(*DTYPES, torch.float64))
    rest = qkv, bias, k_cache, v_cache, slots, k_scale, v_scale
    return angles or _cuda.supports(qkv, dtypes=DTYPES) or _cuda.supports(*rest, dtypes=(*DTYPES, FP8))


def _avoid(qkv, *_, **__) -> str:
    """On a GPU "auto" takes the kernel untimed: the reference waits for the host, and takes a dozen launches."""
    return "emulated kernels are for tests" if qkv.device.type == "cpu" else ""


OP = Op(
    "qkv_rotary",
    (
        _cuda.implementation(
            "afn_kernels.qkv_rotary.boundary:qkv_rotary",
            _supports,
            _avoid,
            why="bias, rotation, rounding to FP8 and both caches in one launch",
        ),
        Impl("reference", "afn_kernels.qkv_rotary.reference:qkv_rotary", why="plain PyTorch"),
    ),
)


def qkv_rotary(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """q, k, v = qkv + bias; q and k rotated as by ``rotary``; k / k_scale and v / v_scale written into the caches.

    What stands between a decode step's projection and ``decode_attention``. The caches change in place; only q has a
    gradient. The reference rounds the sum with the bias, cosines, sines and the rotated keys to the dtype of qkv; the
    cuda implementation rounds once, at the end.

    Args:
        qkv: [T, (Hq + 2 Hk) · D], any floating dtype: heads of q, then of k, then of v.
        positions: [T] float32 (or float64), in units of one position.
        inv_freq: [D / 2] float32, usually rope_theta^(−2d / D).
        k_cache: [rows, Hk, D], or [B, capacity, Hk, D] or [pages, page_size, Hk, D], whose first two axes are one
            run of rows; dtype of qkv, or float8_e4m3fn, to which values beyond ±448 become ±448.
        v_cache: like k_cache.
        slots: [T] int64, the row of the cache that takes each token: sequence · capacity + position, or
            page · page_size + offset. No row twice; a negative one writes nothing.
        bias: [(Hq + 2 Hk) · D], dtype of qkv.
        k_scale: float32 [] or [1], or [Hk]: a key is its entry in the cache times this. None is 1.
        v_scale: the same for values.
        impl: "auto" or the name of an implementation.

    Returns:
        q [T, Hq, D], dtype of qkv.

    Raises:
        ValueError: shapes or dtypes that do not fit; caches that are not one run of rows; a slot past the cache (on
            the CPU; a GPU writes nothing then).

    Source: Su et al., 2021, arXiv:2104.09864; pages as in Kwon et al., 2023, arXiv:2309.06180.
    """
    _check.same_as("qkv_rotary", "v_cache", v_cache, "k_cache", k_cache, _check.alike)
    _check.are_tensors("qkv_rotary", qkv=qkv)
    cache = k_cache.new_empty(0, dtype=qkv.dtype) if k_cache.dtype == FP8 else k_cache
    _check.same_dtype_and_device("qkv_rotary", qkv=qkv, cache=cache)
    if qkv.dim() != 2 or k_cache.dim() not in (3, 4):
        raise ValueError(f"qkv_rotary: qkv is {tuple(qkv.shape)}, the caches are {tuple(k_cache.shape)}")
    kv_heads, width = k_cache.shape[-2:]
    if not width or width % 2 or qkv.shape[1] % width or qkv.shape[1] <= 2 * kv_heads * width:
        raise ValueError(
            f"qkv_rotary: {qkv.shape[1]} columns are no (Hq + 2 · {kv_heads}) · {width} with an even width"
        )
    _check.positions("qkv_rotary", positions, qkv)
    _check.inv_freq("qkv_rotary", inv_freq, width // 2, qkv.device)
    if bias is not None:
        _check.same_dtype_and_device("qkv_rotary", qkv=qkv, bias=bias)
        _check.last_dim("qkv_rotary", "bias", bias, qkv.shape[1])
    check_scales("qkv_rotary", kv_heads, k_scale=k_scale, v_scale=v_scale)
    _check.slots("qkv_rotary", slots, qkv)
    k_cache, v_cache = _rows("k_cache", k_cache), _rows("v_cache", v_cache)
    _check.slots_within("qkv_rotary", slots, len(k_cache))
    args = qkv, positions, inv_freq, k_cache, v_cache, slots
    options = {"bias": bias, "k_scale": k_scale, "v_scale": v_scale}
    return OP.choose(impl, *args, **options)(*args, **options)


def _rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """The cache as [rows, Hk, D], which shares its memory."""
    if x.requires_grad:
        raise ValueError(f"qkv_rotary: {name} is written and can have no gradient")
    return _check.cache_rows("qkv_rotary", name, x)
