"""A WhisperFeatureExtractor whose features come from ``afn_kernels.log_mel``. Importing this imports transformers."""

import numpy as np
import torch
from transformers import BatchFeature, WhisperFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType, logging

from afn_kernels.cpu import warn_missing
from afn_kernels.log_mel import SHORTEST, _cpu_available, log_mel, reference
from afn_kernels.log_mel.tables import HOP, N_FFT

RATE = 16_000
FORMULAS = ("_np_extract_fbank_features", "_torch_extract_fbank_features")  # a subclass may have its own
REFLECTED = N_FFT // 2  # samples that a row must exceed, as torch.stft demands

logger = logging.get_logger("transformers.models.whisper.feature_extraction_whisper")  # heeds transformers' verbosity


class FeatureExtractor(WhisperFeatureExtractor):
    """y = log_mel(padded clips): transformers' WhisperFeatureExtractor, computed by ``afn_kernels.log_mel``.

    Same arguments, outputs and files, so a processor takes one for the other: ``save_pretrained`` writes what
    transformers reads as WhisperFeatureExtractor, ``from_pretrained`` reads what it wrote. Each clip is read where it
    lies and no padded batch is built. Other transforms than 400 samples every 160 at 16 kHz, other numbers of mel bins
    than 80 and 128, dither, padding on the left and clips of unequal padded length go the parent's way.
    """

    def __call__(
        self,
        raw_speech,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_attention_mask: bool | None = None,
        padding: bool | str | PaddingStrategy = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: str | torch.device = "cpu",
        **kwargs,
    ) -> BatchFeature:
        """input_features = log_mel of each clip, padded with ``padding_value``, as the parent's ``__call__``.

        Args:
            raw_speech: what the parent takes, one clip [T] or several; also tensors on any device, [T] or [B, T] or a
                list of [T].
            truncation, pad_to_multiple_of, padding, max_length, sampling_rate, do_normalize: as in the parent.
            return_tensors: "np" (default) or "pt".
            return_attention_mask: as in the parent.
            device: where features are computed. With ``return_tensors="pt"`` they stay there, where the parent brings
                them back to the CPU; the attention mask is on the CPU.

        Returns:
            ``input_features`` [B, feature_size, L // 160] float32 for clips of L padded samples; with a mask also
            ``attention_mask`` [B, L // 160] int32.

        Raises:
            ValueError: another sampling rate; more than one channel; clips of unequal length without padding.

        Source: Radford et al., 2022, arXiv:2212.04356, section 2.2.
        """
        options = {
            "truncation": truncation,
            "pad_to_multiple_of": pad_to_multiple_of,
            "return_tensors": return_tensors,
            "return_attention_mask": return_attention_mask,
            "padding": padding,
            "max_length": max_length,
            "sampling_rate": sampling_rate,
            "do_normalize": do_normalize,
            "device": device,
        }
        clips = _clips(raw_speech) if self._kernel_fits() and sampling_rate in (None, self.sampling_rate) else None
        if not clips:
            return super().__call__(_arrays(raw_speech), **options, **kwargs)
        clips, samples = self._cut(clips, truncation, padding, max_length, pad_to_multiple_of)
        if samples is None or samples <= REFLECTED:
            return super().__call__(_arrays(raw_speech), **options, **kwargs)
        if sampling_rate is None:
            logger.warning(
                f"{type(self).__name__} was not told the sampling rate of its audio and takes it for "
                f"{self.sampling_rate} Hz; sampling_rate= makes sure."
            )

        lengths = np.array([len(clip) for clip in clips])
        if do_normalize:
            clips = [_normalised(clip) if len(clip) else clip for clip in clips]
        features = self._features(clips, samples, torch.device(device or "cpu"))
        if return_tensors is None or TensorType(return_tensors) != TensorType.PYTORCH:
            features = features.cpu().numpy()
        found = BatchFeature({"input_features": features})
        # The parent makes a mask for its own use too, and only one that was asked for counts frames.
        masked = return_attention_mask or do_normalize
        if self.return_attention_mask if masked is None else masked:
            step, steps = (HOP, samples // HOP) if return_attention_mask else (1, samples)
            found["attention_mask"] = (step * np.arange(steps) < lengths[:, None]).astype(np.int32)
        return found.convert_to_tensors(return_tensors)

    def to_dict(self) -> dict:
        """The parent's, under the parent's name, so that transformers reads the file."""
        return {**super().to_dict(), "feature_extractor_type": WhisperFeatureExtractor.__name__}

    def _kernel_fits(self) -> bool:
        transform = self.n_fft, self.hop_length, self.sampling_rate
        return (
            transform == (N_FFT, HOP, RATE)
            and self.feature_size in (80, 128)
            and not self.dither
            and self.padding_side == "right"
            and self.padding_value is not None
            and all(getattr(type(self), name) is getattr(WhisperFeatureExtractor, name) for name in FORMULAS)
        )

    def _cut(self, clips, truncation, padding, max_length, multiple) -> tuple[list[torch.Tensor], int | None]:
        """The clips, truncated, and the number of samples that each has with its padding, None if they differ."""

        def rounded(n: int) -> int:
            return -(-n // multiple) * multiple if multiple else n

        longest = rounded(max_length or self.n_samples)
        if truncation:
            clips = [clip[:longest] for clip in clips]
        lengths = [len(clip) for clip in clips]
        if padding is not False:
            strategy = PaddingStrategy.LONGEST if padding is True else PaddingStrategy(padding)
            least = {PaddingStrategy.MAX_LENGTH: longest, PaddingStrategy.LONGEST: rounded(max(lengths))}
            lengths = [max(n, least.get(strategy, n)) for n in lengths]
        return clips, lengths[0] if len(set(lengths)) == 1 else None

    def _features(self, clips: list[torch.Tensor], samples: int, device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            rows = torch.full((len(clips), samples), float(self.padding_value), dtype=torch.float32, device=device)
            for row, clip in zip(rows, clips, strict=True):
                row[: len(clip)].copy_(clip)
            return _log_mel(rows, self.feature_size)
        features = torch.empty(len(clips), self.feature_size, samples // HOP, dtype=torch.float32, device="cpu")
        padded = None
        for clip, out in zip(clips, features, strict=True):
            row = clip.to("cpu", torch.float32)
            if len(row) < samples:
                # NumPy copies: PyTorch's threads would spin on the cores that the kernel is about to use.
                padded = np.empty(samples, np.float32) if padded is None else padded
                padded[: len(row)] = row.numpy()
                padded[len(row) :] = self.padding_value
                row = torch.from_numpy(padded)
            _log_mel(row[None], self.feature_size, out[None])
        return features


def _clips(speech) -> list[torch.Tensor] | None:
    """One tensor [T] per clip, without a copy where ``speech`` has float32 arrays; None is the parent's business."""
    if isinstance(speech, torch.Tensor):
        clips = [speech] if speech.dim() == 1 else list(speech) if speech.dim() == 2 else []
    elif isinstance(speech, np.ndarray):
        clips = [speech] if speech.ndim == 1 else list(speech) if speech.ndim == 2 else []
    elif isinstance(speech, (list, tuple)) and len(speech):
        clips = speech if isinstance(speech[0], (torch.Tensor, np.ndarray, tuple, list)) else [speech]
    else:
        return None
    clips = [clip.detach() if isinstance(clip, torch.Tensor) else _tensor(clip) for clip in clips]
    return clips if all(clip.dim() == 1 and not clip.is_complex() for clip in clips) else None


def _arrays(speech):
    """Tensors as arrays, for the parent."""
    if isinstance(speech, torch.Tensor):
        return speech.detach().float().cpu().numpy()
    if isinstance(speech, (list, tuple)) and any(isinstance(clip, torch.Tensor) for clip in speech):
        return [_arrays(clip) for clip in speech]
    return speech


def _tensor(clip) -> torch.Tensor:
    # PyTorch warns of memory that may not be written and takes no negative strides.
    return torch.from_numpy(np.require(clip, np.float32, ["C", "W"]))


def _normalised(clip: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance, statistics in float64."""
    wide = clip.double()
    return ((wide - wide.mean()) / (wide.var(correction=0) + 1e-7).sqrt()).float()


def _log_mel(rows: torch.Tensor, n_mels: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """Features of rows of any length above 200: the op takes whole hops, the compiled kernel and the reference do not
    mind a rest, which only the last frame can see."""
    samples = rows.shape[1]
    if samples % HOP == 0 and samples >= SHORTEST:
        return log_mel(rows, n_mels=n_mels, out=out)
    if rows.device.type == "cpu" and not _cpu_available():
        from afn_kernels.log_mel import cpu

        return cpu.log_mel(rows, n_mels=n_mels, out=out)
    if rows.device.type == "cpu":
        warn_missing("log_mel")
    return reference.log_mel(rows, n_mels=n_mels, out=out)
