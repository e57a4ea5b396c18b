"""Embeddings of position and of time."""

from torch import Tensor, nn

from afn_kernels.rote import rote


class RotaryTimeEmbedding(nn.Module):
    """Rotates features by a phase that grows with time, φ = −2π t · position / period · f_k: a module over ``rote``.

    It has no parameters and no buffers.

    Args:
        options: ``rotary_dim``, ``theta``, ``period``, ``window_factor``, ``frame_factor``, ``seconds_per_frame``,
            ``frames_per_window``, ``phase_dtype`` and ``impl``, as ``rote`` takes them.

    Returns:
        Called with x [..., D] and integers ``window`` and ``frame`` [...]: x rotated, same shape and dtype.

    Raises:
        ValueError: what ``rote`` raises; an option that it does not have.
    """

    def __init__(self, **options):
        super().__init__()
        known = set(rote.__kwdefaults__)
        if not options.keys() <= known:
            raise ValueError(f"rote has no option {sorted(options.keys() - known)}; it has {sorted(known)}")
        self.options = options

    def forward(self, x: Tensor, window: Tensor, frame: Tensor) -> Tensor:
        if window.shape != x.shape[:-1] or frame.shape != x.shape[:-1]:
            shapes = f"window {list(window.shape)}, frame {list(frame.shape)}"
            raise ValueError(f"{shapes}; expected one of each for every row of x {list(x.shape)}")
        return rote(x.reshape(-1, x.shape[-1]), window.flatten(), frame.flatten(), **self.options).view(x.shape)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
