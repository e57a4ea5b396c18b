"""Rotary time embedding in an audio encoder of your own: frames that know when they were heard.

    python examples/rote_in_your_model.py

``ak.rote`` rotates audio features before the language model sees them, as released Music Flamingo and AF-Next weights
do; ``ak.rotary`` rotates queries and keys by any float positions, here seconds in units of 40 ms.
"""

import torch
from torch import nn

import afn_kernels as ak

WIDTH, HEADS = 64, 4
WINDOW = 750  # frames of 40 ms in a window of 30 s


class Encoder(nn.Module):
    """Waveform to one row per 40 ms, rotated by its time within the recording."""

    def __init__(self):
        super().__init__()
        self.front = ak.nn.AudioFrontEnd(n_mels=80, width=WIDTH)
        self.pool = ak.nn.PooledNorm(WIDTH)
        self.time = ak.nn.RotaryTimeEmbedding(phase_dtype=torch.float64)

    def forward(self, pcm_WT: torch.Tensor) -> torch.Tensor:
        x_WSD = self.pool(self.front(pcm_WT))
        windows, frames, _ = x_WSD.shape
        window = torch.arange(windows)[:, None].expand(windows, frames)
        frame = torch.arange(frames).expand(windows, frames)
        return self.time(x_WSD, window, frame)


def main():
    torch.manual_seed(0)
    encoder = Encoder()
    window = 0.1 * torch.randn(1, 480_000)
    x_WSD = encoder(window.expand(3, -1))  # three windows that sound alike
    print(f"{list(x_WSD.shape)}: windows, frames, width")
    apart = (x_WSD[0] - x_WSD[2]).norm() / x_WSD[0].norm()
    print(f"the same sound a minute later differs by {apart:.3f} of its length")
    same = torch.allclose(x_WSD[0].norm(dim=-1), x_WSD[2].norm(dim=-1), rtol=1e-4)
    print(f"rotations keep lengths: {same}")

    # The same idea inside attention: scores depend on the seconds between two events, wherever they are.
    seconds = torch.tensor([0.0, 1.5, 60.0, 61.5])
    q, k = torch.randn(1, HEADS, 16).expand(4, -1, -1), torch.randn(1, HEADS, 16).expand(4, -1, -1)
    inv_freq = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    q, k = ak.rotary(q, k, seconds / 0.04, inv_freq)
    early, late = (q[1] * k[0]).sum(-1), (q[3] * k[2]).sum(-1)
    print(f"score of events 1.5 s apart, at 0 s and at 60 s: {early[0]:.4f} {late[0]:.4f}")
    return same and torch.allclose(early, late, atol=1e-3)


if __name__ == "__main__":
    raise SystemExit(not main())
