"""Audio embeddings into the token rows that hold their places."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op

OP = Op(
    "splice",
    (
        _triton.implementation("afn_kernels.splice.boundary:splice", why="one read and one write of every row"),
        Impl("reference", "afn_kernels.splice.reference:splice", why="plain PyTorch"),
    ),
)


def splice(tokens: torch.Tensor, audio: torch.Tensor, rows: torch.Tensor, *, impl: str = "auto") -> torch.Tensor:
    """y = tokens, except y[rows[i]] = audio[i]. Out of place: ``tokens`` keeps its values and its gradient path.

    Args:
        tokens: [T, D] token embeddings, any floating dtype.
        audio: [N, D] audio embeddings, same dtype.
        rows: [N] int64, distinct rows of ``tokens``.
        impl: "auto" or the name of an implementation.

    Returns:
        [T, D].

    Raises:
        ValueError: shapes or dtypes that do not fit; a row outside 0..T−1 (on the CPU; a GPU leaves it out).
    """
    _check.same_dtype_and_device("splice", tokens=tokens, audio=audio)
    if tokens.dim() != 2 or audio.dim() != 2 or tokens.shape[1] != audio.shape[1]:
        raise ValueError(f"splice: tokens are {tuple(tokens.shape)}, audio is {tuple(audio.shape)}")
    if rows.shape != audio.shape[:1] or rows.dtype != torch.int64:
        raise ValueError(f"splice: {audio.shape[0]} audio rows but rows is {rows.dtype} {tuple(rows.shape)}")
    if _check.readable(rows) and rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(tokens):
        raise ValueError(f"splice: rows span {int(rows.min())}..{int(rows.max())}, tokens have {len(tokens)} rows")
    return OP.choose(impl, tokens, audio, rows)(tokens, audio, rows)
