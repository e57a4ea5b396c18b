"""The compiled extension: whether it was built, how to get it, and what it does that is no op on tensors."""

import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from afn_kernels import _registry
from afn_kernels._library import has_tangent
from afn_kernels._registry import constant

# As in csrc/include/afn/resample_simd.h.
RESAMPLE_OUTPUTS = 16  # outputs of a block
RESAMPLE_GROUPS = 8  # groups computed together
RESAMPLE_LANES = 32


BUILT = Path(__file__).parent / "_binaries" / "built.json"  # setup.py writes it

_warned = False


def available() -> str:
    """Why the extension cannot be used; empty when it can."""
    try:
        import afn_kernels._cpu  # noqa: F401
    except ImportError as error:
        return f"the compiled extension is missing: {not_built('cpu') or error}"
    return ""


_usable = lru_cache(available)


@constant
def usable() -> str:
    """``available``, looked at once."""
    return _usable()


def wants_gradient(*tensors: Tensor | None) -> str:
    """Why compiled kernels do not take a call: they have no gradient; empty where none is wanted."""
    grad = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and ((grad and x.requires_grad) or has_tangent(x)):
            return "it has no gradient; the reference has"
    return ""


def supports(*tensors: Tensor | None) -> str:
    """Why the kernels of float32 rows do not take these tensors; empty when they do."""
    for x in tensors:
        if x is not None and not x.is_cpu:
            return f"the tensors are on {x.device}"
        if x is not None and x.dtype != torch.float32:
            return f"{str(x.dtype).removeprefix('torch.')} is computed by the reference"
    return wants_gradient(*tensors)


def avoid(*_, slots: Tensor | None = None, **__) -> str:
    """Why ``impl="auto"`` leaves a kernel aside that has a reference with a gradient, and no gradient itself.

    A loss compares passes with and without a gradient: theirs are the same bits. Nothing goes on from a written cache.
    """
    if torch.compiler.is_compiling():
        return "torch.compile fuses the reference"
    if slots is None and not torch.is_inference_mode_enabled():
        return "outside torch.inference_mode() its bits would not be those of a pass with a gradient"
    return ""


def steered() -> bool:
    """Whether something else decides how ops are computed: a preferred implementation, autocast or torch.compile."""
    return bool(_registry._preferred) or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


def not_built(what: str) -> str:
    """Why the build of this installation has no kernels of ``what``, "cpu" or "cuda"; empty where that is not known."""
    try:
        return json.loads(BUILT.read_text(encoding="utf-8"))["missing"][what]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def checkout() -> Path | None:
    """The folder with setup.py and csrc, if this package is imported from a checkout."""
    folder = Path(__file__).parents[1]
    return folder if (folder / "setup.py").is_file() and (folder / "csrc").is_dir() else None


def install_command() -> str:
    """What installs this version again, built on this machine. It needs a C++ compiler; pip brings all else."""
    import shlex
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    if folder := checkout():
        return f"pip install --no-deps -e {shlex.quote(str(folder))}"
    source, origin = "afn-kernels", {}
    try:
        found = distribution("afn-kernels")
        source = f"afn-kernels=={found.version}"
        origin = json.loads(found.read_text("direct_url.json") or "{}")  # PEP 610: where pip took no package index
    except (PackageNotFoundError, ValueError):
        pass
    url, repository = origin.get("url", ""), origin.get("vcs_info")
    if repository:
        source = shlex.quote(f"{repository['vcs']}+{url}@{repository['commit_id']}")
    elif url.startswith("file:") and not url.endswith(".whl"):
        source = shlex.quote(unquote(urlsplit(url).path))
    return f"pip install --force-reinstall --no-deps --no-cache-dir --no-binary afn-kernels {source}"


@constant  # called while torch.compile traces
def warn_missing(what: str) -> None:
    """Says once in a process what runs without the extension, why, and what installs it."""
    global _warned
    reason = "" if _warned else available()
    if reason:
        _warned = True
        warnings.warn(
            f"{what} runs several times slower than it could, without compiled code: {reason}. Where there is a C++ "
            f"compiler, this installs it: {install_command()} (said once; afn doctor says more)",
            stacklevel=3,
        )


def pack_bins(
    lengths: np.ndarray, context: int, seed: int, max_cost: int, buffer: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clips into bins of one context length, by the rules of csrc/cpu/pack.cpp.

    Args:
        lengths: [clips] int64, contiguous, each from 1 to ``context``: tokens.
        context: most tokens of a bin, up to 2²⁰.
        seed: of every draw.
        max_cost: most Σ length² of a bin, at least that of any clip.
        buffer: clips taken from the shuffled stream at a time.
        step: bins of a global step.

    Returns:
        clips [clips] int64, bin after bin, and cu [bins + 1] int64: bin b holds ``clips[cu[b]:cu[b + 1]]``.

    Raises:
        ImportError: the extension was not built.
    """
    from afn_kernels._cpu import pack

    clips, cu = np.empty(len(lengths), np.int64), np.empty(len(lengths) + 1, np.int64)
    bins = pack(
        lengths.ctypes.data, len(lengths), context, seed, max_cost, buffer, step, clips.ctypes.data, cu.ctypes.data
    )
    return clips, cu[: bins + 1].copy()


def resample_rational(x: Tensor, filters: Tensor, first: Tensor, step: int, groups: int, *, level: str = "") -> Tensor:
    """y[g, b, i] = Σ_n x[g · step + first[b] + n] · filters[b, n, i]: sample rates in a simple ratio.

    Every output is summed in the order of n, whatever is computed with it: the bits depend on its own samples and the
    instruction set.

    Args:
        x: [samples] float32.
        filters: [blocks, taps, ``RESAMPLE_OUTPUTS``] float32.
        first: [blocks] int64.
        step: samples from one group of outputs to the next.
        groups: a multiple of ``RESAMPLE_GROUPS``.
        level: SIMD level; by default $AFN_SIMD or the fastest.

    Returns:
        [groups · blocks · ``RESAMPLE_OUTPUTS``] float32.

    Raises:
        ImportError: the extension was not built.
        ValueError: the filters reach beyond x, or the numbers of outputs or groups are others.
    """
    from afn_kernels._cpu import resample_rational as run

    blocks, taps, outputs = filters.shape
    if outputs != RESAMPLE_OUTPUTS or groups % RESAMPLE_GROUPS:
        raise ValueError(
            f"{outputs} outputs in {groups} groups: not {RESAMPLE_OUTPUTS} in a multiple of {RESAMPLE_GROUPS}"
        )
    if groups and (groups - 1) * step + int(first.max()) + taps > x.numel():
        raise ValueError(f"{groups} groups of {step} samples and {taps} taps reach beyond {x.numel()} samples")
    _check_float32(x, filters)
    out = torch.empty(groups * blocks * outputs, dtype=torch.float32, device="cpu")
    run(x.data_ptr(), filters.data_ptr(), first.data_ptr(), blocks, taps, step, groups, out.data_ptr(), level)
    return out


def resample_any_ratio(
    x: Tensor, filters: Tensor, rate: int, to: int, first: int, count: int, *, level: str = ""
) -> Tensor:
    """y[k] = Σ_n x[⌊k · rate / to⌋ - ⌊first · rate / to⌋ + n] · f[n] with the filter f between two phases.

    f is interpolated linearly between rows r and r + 1, r = ⌊(k · rate mod to) · phases / to⌋. The bits of an output
    depend on its own samples and the instruction set.

    Args:
        x: [samples] float32.
        filters: [phases + 1, taps] float32, taps a multiple of ``RESAMPLE_LANES``.
        rate: of the input, Hz.
        to: of the output, Hz.
        first: index of the first output.
        count: of outputs.
        level: SIMD level; by default $AFN_SIMD or the fastest.

    Returns:
        [count] float32.

    Raises:
        ImportError: the extension was not built.
        ValueError: the filters reach beyond x, or have another number of taps.
    """
    from afn_kernels._cpu import resample_any_ratio as run

    rows, taps = filters.shape
    if taps % RESAMPLE_LANES:
        raise ValueError(f"{taps} taps: not a multiple of {RESAMPLE_LANES}")
    if count and (first + count - 1) * rate // to - first * rate // to + taps > x.numel():
        raise ValueError(f"{count} outputs and {taps} taps reach beyond {x.numel()} samples")
    _check_float32(x, filters)
    out = torch.empty(count, dtype=torch.float32, device="cpu")
    run(x.data_ptr(), filters.data_ptr(), rows - 1, taps, rate, to, first, count, out.data_ptr(), level)
    return out


class DecoderLayer(NamedTuple):
    """Weights of one layer of a decoder, each [out, in] with a bias [out] or None; of norms [width]."""

    input_norm: Tensor
    post_norm: Tensor
    q: Tensor
    q_bias: Tensor | None
    k: Tensor
    k_bias: Tensor | None
    v: Tensor
    v_bias: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    gate: Tensor
    gate_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class CompiledDecoder:
    """A few new tokens of sequences through all layers of a Qwen2-family decoder, in one call.

    In every layer h ← h + W_o attention(rotary(W_q n + b_q, W_k n + b_k), W_v n + b_v) and then
    h ← h + W_down (silu(W_gate n) · W_up n), each with n = h / rms(h) · weight; and that norm of the result. New keys
    and values are written into pages, over which attention goes as by the cpu implementations of ``decode_attention``
    and ``paged_attention``: a token sees those that come before it in its sequence, the new ones too.

    Weights are read where they are: what is written into them in place is seen. Every output of a product is summed in
    an order that depends on its length and the instruction set alone, so a row's bits do not depend on the rows beside
    it. It has no gradient.

    Args:
        layers: float32 weights on the CPU, contiguous.
        norm: [width], of the last norm.
        inv_freq: [head_dim / 2] float32.
        heads: query heads.
        kv_heads: heads of keys and values.
        eps: of the norms.

    Raises:
        ImportError: the extension was not built.
        ValueError: weights of another dtype, device, layout or shape.
    """

    def __init__(
        self, layers: Sequence[DecoderLayer], norm: Tensor, inv_freq: Tensor, *, heads: int, kv_heads: int, eps: float
    ):
        from afn_kernels._cpu import Decoder, decode_step

        width, head_dim = len(norm), 2 * len(inv_freq)
        ffn, queries, keys = len(layers[0].gate), heads * head_dim, kv_heads * head_dim
        outs = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
        outs |= {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}
        shapes = {"input_norm": (width,), "post_norm": (width,), **outs}
        shapes |= {f"{name}_bias": shape[:1] for name, shape in outs.items()}
        _check_float32(norm, inv_freq)
        for layer in layers:
            for name, x in layer._asdict().items():
                if x is None and name.endswith("_bias"):
                    continue
                if x is None or x.shape != shapes[name]:
                    found = None if x is None else list(x.shape)
                    raise ValueError(f"{name} is {found}, expected {list(shapes[name])}")
                _check_float32(x)
        if heads % kv_heads or head_dim > 256:
            raise ValueError(f"{heads} query heads over {kv_heads} KV heads of {head_dim} elements, at most 256")
        self._run, self._kept = decode_step, (list(layers), norm, inv_freq)
        self._caches = kv_heads, head_dim
        pointers = [[0 if x is None else x.data_ptr() for x in layer] for layer in layers]
        self._decoder = Decoder(
            pointers, norm.data_ptr(), inv_freq.data_ptr(), width, heads, kv_heads, head_dim, ffn, eps
        )

    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        slots: Tensor,
        kv: Tensor,
        table: Tensor,
        lengths: Tensor,
        bounds: Tensor | None = None,
        *,
        threads: int = 0,
        level: str = "",
    ) -> Tensor | None:
        """Hidden states behind the last norm.

        Args:
            x: [R, width] float32 embeddings of the new tokens, sequence after sequence.
            positions: [R] float32.
            slots: [R] int64, the places of the new tokens in the pages taken as one run; nothing is written for
                negative ones.
            kv: [layers, 2, pages, page, kv_heads, head_dim] float32, contiguous; changes in place.
            table: [N, columns] int32 or int64, the pages of each sequence in order.
            lengths: [N] int32 or int64, the new tokens included.
            bounds: [N + 1] int32 or int64 boundaries of the new tokens; None where each sequence has one.
            threads: default PyTorch's. They change no bit.
            level: SIMD level; by default $AFN_SIMD or the fastest.

        Returns:
            [R, width] float32; None, with nothing written, where a length is below its new tokens or above what the
            table holds, a page is not there, or boundaries are not those of R tokens.

        Raises:
            ValueError: tensors of another dtype, device, layout or shape.
        """
        rows, width = len(x), len(self._kept[1])
        x, positions = x.contiguous(), positions.contiguous()
        slots, table, lengths = slots.long().contiguous(), table.contiguous(), lengths.contiguous()
        _check_float32(x, positions, kv)
        sequences = rows if bounds is None else len(bounds) - 1
        alike = x.shape == (rows, width) and positions.shape == slots.shape == (rows,) and sequences >= 0
        if not alike or lengths.shape != (sequences,) or table.dim() != 2 or len(table) != sequences:
            shapes = [list(y.shape) for y in (x, positions, slots, table, lengths)]
            what = f"{rows} rows of {width}" + ("" if bounds is None else f" of {sequences} sequences")
            raise ValueError(f"x, positions, slots, table, lengths are {shapes}: not of {what}")
        if kv.dim() != 6 or (*kv.shape[:2], *kv.shape[4:]) != (len(self._kept[0]), 2, *self._caches):
            raise ValueError(f"kv is {list(kv.shape)}: not of {len(self._kept[0])} layers and heads of {self._caches}")
        bounds = None if bounds is None else bounds.contiguous()
        for numbers in (slots, table, lengths, slots if bounds is None else bounds):
            if numbers.device.type != "cpu" or numbers.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"{numbers.dtype} on {numbers.device}: not int32 or int64 on the CPU")
        out = torch.empty_like(x)
        done = self._run(
            self._decoder, x.data_ptr(), positions.data_ptr(), slots.data_ptr(), kv.data_ptr(), rows,
            kv.shape[2], kv.shape[3], (table.data_ptr(), table.dtype == torch.int64), table.shape[1], table.stride(0),
            (lengths.data_ptr(), lengths.dtype == torch.int64),
            (0, False) if bounds is None else (bounds.data_ptr(), bounds.dtype == torch.int64), sequences,
            out.data_ptr(), threads or torch.get_num_threads(), level,
        )  # fmt: skip
        return out if done else None


def _check_float32(*tensors: Tensor) -> None:
    for x in tensors:
        if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError(f"{x.dtype} on {x.device} with strides {x.stride()}: not contiguous float32 on the CPU")
