"""Log-mel features of audio that arrives in pieces of any size."""

from dataclasses import dataclass

import torch

from afn_kernels._kept import made_alone
from afn_kernels.log_mel import OP, log_mel, reference, tables

STEP = 16  # frames the compiled kernel computes together


@dataclass(frozen=True)
class LogMelWindow:
    """A finished window: ``features`` [n_mels, frames] and how many of its samples came from the stream."""

    features: torch.Tensor
    samples: int

    @property
    def valid_frames(self) -> int:
        """ceil(samples / 160): frames that begin before the audio ends; those after it are features of silence."""
        return -(-self.samples // tables.HOP)


class LogMelStream:
    """Windows of log-mel features from PCM pushed in any chunks, bit for bit those of ``log_mel`` on each window.

    Features are clamped at the maximum of their window minus 8, which is known only when the window is complete, so
    finished features come a window at a time. The spectra are computed as samples arrive; what is left to do at a
    window's end is a logarithm. ``log_energies`` shows the frames so far, before clamp and scale, for those who can
    use them early.

    Args:
        n_mels: 128 or 80.
        out_dtype: floating dtype of the features.
        window_samples: samples of a window, a multiple of 160; the default is 30 s.
        impl: "auto", "cpu" or "reference"; the reference computes a window when it is complete.

    Raises:
        ValueError: arguments that ``log_mel`` refuses.
    """

    def __init__(
        self,
        *,
        n_mels: int = 128,
        out_dtype: torch.dtype = torch.float32,
        window_samples: int = 480_000,
        impl: str = "auto",
    ):
        self._options = {"n_mels": n_mels, "out_dtype": out_dtype, "impl": impl}
        log_mel(torch.empty(0, window_samples, dtype=torch.float32, device="cpu"), **self._options)
        self._n_mels, self._out_dtype = n_mels, out_dtype
        self._frames = window_samples // tables.HOP
        # The stream may outlive the inference mode or default device under which it was made.
        self._row, self._energies = made_alone(
            lambda: tuple(
                torch.zeros(shape, dtype=torch.float32) for shape in ((1, window_samples), (n_mels, self._frames))
            )
        )
        self._pcm = self._row[0]
        self._compiled = impl == "cpu" or (impl == "auto" and OP.explain(self._row).chosen == "cpu")
        self._reset()

    def _reset(self) -> None:
        self._samples = self._computed = self._largest = 0

    def push(self, pcm: torch.Tensor) -> list[LogMelWindow]:
        """Take samples; return the windows they complete, in order, usually none.

        Args:
            pcm: [n] float32 in [−1, 1] or int16, 16 kHz, on the CPU; n may be 0 or span several windows.

        Raises:
            ValueError: another shape, dtype or device.
        """
        if pcm.dim() != 1 or pcm.dtype not in (torch.float32, torch.int16) or pcm.device.type != "cpu":
            found = f"{pcm.dtype} {list(pcm.shape)} on {pcm.device}"
            raise ValueError(f"LogMelStream: a chunk is {found}, not [n] of float32 or int16 on cpu")
        finished = []
        while len(pcm):
            taken, pcm = pcm.split([n := min(len(pcm), len(self._pcm) - self._samples), len(pcm) - n])
            place = self._pcm[self._samples : self._samples + n].copy_(taken.detach())
            if pcm.dtype == torch.int16:
                place.mul_(1 / 32768)
            self._samples += n
            if self._samples == len(self._pcm):
                finished.append(self._close())
            elif self._compiled:
                self._compute(self._ready() // STEP * STEP)
        return finished

    def finish(self) -> LogMelWindow | None:
        """The last, incomplete window, padded with zeros on the right; None when no sample is pending.

        The stream is then empty and may be used again.
        """
        return self._close() if self._samples else None

    def log_energies(self) -> torch.Tensor:
        """log10(max(mel energy, 1e-10)) of the frames of the current window that later samples cannot change.

        Returns:
            [n_mels, n] float32; for n frames, log_mel gives (max(x, M − 8) + 4) / 4 with M the window's maximum.
        """
        ready = self._ready()
        if self._compiled:
            self._compute(ready)
            energies = self._energies[:, :ready]
        else:
            energies = reference.mel_energies(self._row, self._n_mels)[0, :, :ready]
        return energies.clamp(min=1e-10).log10()

    def _ready(self) -> int:
        """Frames of an incomplete window whose samples, the reflected ones included, are all here."""
        return max(0, (self._samples - tables.N_FFT // 2 - 1) // tables.HOP + 1)

    def _compute(self, end: int) -> None:
        from afn_kernels.log_mel import cpu

        if end > self._computed:
            largest = cpu.mel_energies(self._pcm, self._computed, end, self._energies)
            self._largest, self._computed = max(self._largest, largest), end

    def _close(self) -> LogMelWindow:
        self._pcm[self._samples :] = 0
        if self._compiled:
            from afn_kernels.log_mel import cpu

            self._compute(self._frames)
            features = cpu.log_scale(self._energies, self._largest).to(self._out_dtype)
        else:
            features = log_mel(self._row, **self._options)[0]
        window = LogMelWindow(features, self._samples)
        self._reset()
        return window
