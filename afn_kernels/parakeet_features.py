"""transformers' ParakeetFeatureExtractor, computed by ``afn_kernels.log_mel``. Importing this imports transformers."""

from dataclasses import replace

import torch
import transformers
from transformers import BatchFeature

from afn_kernels.features import _arrays, _clips
from afn_kernels.log_mel import MelConfig, log_mel

Theirs = transformers.ParakeetFeatureExtractor
FORMULA = "_torch_extract_fbank_features"  # a subclass may have its own


class ParakeetFeatureExtractor(Theirs):
    """y = log_mel(clips, MelConfig.nemo()): the front end of Parakeet and Canary, as transformers has it.

    Same arguments, outputs and files: ``save_pretrained`` writes what transformers reads, ``from_pretrained`` reads
    what it wrote. A clip of a single frame, whose deviation is undefined, has features of 0 where transformers has NaN.
    Padding on the left or with other values than 0, clips that are truncated and what is not mono go the parent's way.
    """

    def __call__(
        self,
        raw_speech,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        padding: str | None = "longest",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: str | torch.device | None = "cpu",
        **kwargs,
    ) -> BatchFeature:
        """input_features = log_mel of the padded clips, as the parent's ``__call__``.

        Args:
            raw_speech: what the parent takes, one clip [T] or several; also tensors on any device.
            truncation, pad_to_multiple_of, padding, max_length, sampling_rate, return_tensors: as in the parent.
            return_attention_mask, do_normalize: without effect, as in the parent.
            device: where features are computed, and stay.

        Returns:
            ``input_features`` [B, frames, feature_size] float32 and ``attention_mask`` [B, frames].

        Raises:
            ValueError: another sampling rate; clips of unequal length without padding.
        """
        cut = {"truncation": truncation, "padding": padding, "max_length": max_length}
        cut["pad_to_multiple_of"] = pad_to_multiple_of
        clips = _clips(raw_speech) if sampling_rate == self.sampling_rate and self._kernel_fits() else None
        long = truncation and max_length and clips and max(map(len, clips)) > max_length
        if not clips or long or not all(map(len, clips)):
            given = {"return_attention_mask": return_attention_mask, "do_normalize": do_normalize, "device": device}
            given |= {"return_tensors": return_tensors, "sampling_rate": sampling_rate}
            return super().__call__(_arrays(raw_speech), **cut, **given, **kwargs)
        lengths = torch.tensor([len(clip) for clip in clips])
        # The parent's padding knows NumPy arrays and lists; all that is asked of it is how long the rows are.
        rows = self.pad(BatchFeature({"input_features": [clip.float().cpu()[:, None] for clip in clips]}), **cut)
        rows = torch.as_tensor(rows["input_features"]).squeeze(-1).to(device or "cpu")
        lengths = lengths.to(rows.device)
        config = self._config()
        features = log_mel(rows, config=config, lengths=lengths).transpose(1, 2)
        mask = torch.arange(features.shape[1], device=rows.device) < config.valid_frames(lengths)[:, None]
        return BatchFeature({"input_features": features, "attention_mask": mask}, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        """The parent's, under the parent's name, so that transformers reads the file."""
        return {**super().to_dict(), "feature_extractor_type": Theirs.__name__}

    def _config(self) -> MelConfig:
        sizes = {"n_fft": self.n_fft, "hop_length": self.hop_length, "win_length": self.win_length}
        sizes |= {"sample_rate": self.sampling_rate, "preemphasis": self.preemphasis or 0.0}
        return replace(MelConfig.nemo(self.feature_size), **sizes)

    def _kernel_fits(self) -> bool:
        plain = self.padding_side == "right" and self.padding_value == 0
        return plain and self.win_length <= self.n_fft and getattr(type(self), FORMULA) is getattr(Theirs, FORMULA)
