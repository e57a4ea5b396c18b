"""Which recordings are held out: a function of one field of a row, so that stages that pair recordings know it too."""

from __future__ import annotations

from afn_model.checks import number
from afn_model.curate import identity
from afn_model.curate.stage import Row

TRAIN, HELDOUT = "train", "heldout"


def split_of(row: Row, by: str = "source_id", heldout: float = 0.01) -> str:
    """``heldout`` for a share of the values of a field, chosen by their hashes, and ``train`` for the others.

    Args:
        row: with a source id, which stands in where the field is empty.
        by: the field.
        heldout: the share, 0..1.
    """
    drawn = identity.fraction("split", str(row.get(by) or row["source_id"]))
    return HELDOUT if drawn < heldout else TRAIN


def check_heldout(heldout: float) -> None:
    """
    Raises:
        ValueError: it is no share that leaves anything.
    """
    if not 0 <= number(heldout, "heldout") < 1:
        raise ValueError(f"heldout is from 0 up to below 1, got {heldout}")
