"""The compiled extension: whether it was built, and what it does that is no op on tensors."""

import numpy as np


def available() -> str:
    """Why the extension cannot be used; empty when it can."""
    try:
        import afn_kernels._cpu  # noqa: F401
    except ImportError as error:
        return f"the compiled extension is missing: {error}"
    return ""


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
