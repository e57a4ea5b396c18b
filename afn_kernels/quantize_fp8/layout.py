"""Shapes and strides of the scales."""


def scale_layout(rows: int, columns: int, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, strides) of the scales of a [rows, columns] result in blocks; a block side of 0 is the whole axis."""
    if not height:
        return (), ()
    if not width:
        return (rows, 1), (1, 1)
    down, across = -(-rows // height), -(-columns // width)
    return (down, across), (1, down) if height == 1 else (-(-across // 4) * 4, 1)
