"""Audio embeddings into the token rows that hold their places."""

import torch

from afn_kernels import _autocast, _check, _triton
from afn_kernels._registry import Impl, Op

OP = Op(
    "merge_embeddings",
    (
        _triton.implementation(
            "afn_kernels.merge_embeddings.boundary:merge_embeddings", why="one read and one write of every row"
        ),
        Impl("reference", "afn_kernels.merge_embeddings.reference:merge_embeddings", why="plain PyTorch"),
    ),
)


def merge_embeddings(
    tokens: torch.Tensor, audio: torch.Tensor, rows: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """y = tokens, except y[rows[i]] = audio[i]. Out of place: ``tokens`` keeps its values and its gradient path.

    Args:
        tokens: [T, D] token embeddings, any floating dtype.
        audio: [N, D] audio embeddings, same dtype.
        rows: [N] int64, distinct rows of ``tokens``.
        impl: "auto" or the name of an implementation.

    Returns:
        [T, D]. Under torch.autocast in the wider dtype of the two, as of torch.cat.

    Raises:
        ValueError: shapes or dtypes that do not fit; a row outside 0..T−1 (on the CPU; a GPU leaves it out).
    """
    tokens, audio = _autocast.widest(tokens, audio)
    _check.same_dtype_and_device("merge_embeddings", tokens=tokens, audio=audio)
    _check.beside("merge_embeddings", "rows", rows, tokens)
    if rows.dtype != torch.int64:
        hint = ": indices, mask.nonzero().squeeze(1) of a mask" if rows.dtype == torch.bool else ""
        raise ValueError(f"merge_embeddings: rows are {rows.dtype}, expected int64{hint}")
    if tokens.dim() != 2 or audio.dim() != 2 or tokens.shape[1] != audio.shape[1] or rows.shape != audio.shape[:1]:
        raise _check.misfit("merge_embeddings", tokens=(tokens, "T D"), audio=(audio, "N D"), rows=(rows, "N"))
    if _check.readable(rows) and rows.numel():
        first, last = int(rows.min()), int(rows.max())
        if not 0 <= first <= last < len(tokens):
            raise ValueError(f"merge_embeddings: rows span {first}..{last}, tokens have {len(tokens)} rows")
    return OP.choose(impl, tokens, audio, rows)(tokens, audio, rows)
