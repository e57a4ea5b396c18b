"""The compiled extension: whether it was built, how to get it, and what it does that is no op on tensors."""

import json
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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


def _check_float32(*tensors: Tensor) -> None:
    for x in tensors:
        if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError(f"{x.dtype} on {x.device} with strides {x.stride()}: not contiguous float32 on the CPU")
