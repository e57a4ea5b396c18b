"""Which of the four ways of scaling a call has."""

from torch import Tensor

BLOCK = 128


def scaling(x: Tensor, w: Tensor, scale_x: Tensor, scale_w: Tensor) -> str:
    """What the scales of x and w are, by their shapes; empty where they do not fit.

    Returns:
        "tensor", "row", "tiles" (1 x 128 of x, 128 x 128 of w) or "blocks" (1 x 128 of both). Where two of them have
        the same shapes they are the same.
    """
    (rows, inner), columns = x.shape, w.shape[0]
    if scale_x.dim() == scale_w.dim() == 0:
        return "tensor"
    if scale_x.dim() != 2 or scale_w.dim() != 2:
        return ""
    if scale_x.shape[0] != rows or scale_x.shape[1] != scale_w.shape[1]:
        return ""
    each = scale_w.shape[0] == columns
    if each and scale_x.shape[1] == 1:
        return "row"
    if scale_x.shape[1] != -(-inner // BLOCK):
        return ""
    return "blocks" if each else "tiles" if scale_w.shape[0] == -(-columns // BLOCK) else ""
