"""The audio encoder with its text decoder, on the packed batches that the whole model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.audio.frames import mel_frames
from afn_model.config import SpeechConfig
from afn_model.network.ctc import CTCTerm, ctc_head, ctc_loss
from afn_model.network.device_batch import AudioInputs, DeviceBatch
from afn_model.network.encoder import AudioEncoder, Windows, sinusoids
from afn_model.network.speech_decoder import SpeechDecoder
from afn_model.prompt.batch import Batch

if TYPE_CHECKING:
    from afn_distributed.hybrid import SequenceParallel

Augment = Callable[[Tensor, list[int]], Tensor]


class SpeechNetwork(nn.Module):
    """Audio to text through cross-attention; the head is the transpose of the token embedding.

    It reads the batches of the whole model. Of a packed conversation the decoder gets the text alone, placeholders left
    out, and hears all of the conversation's audio.
    """

    def __init__(self, config: SpeechConfig):
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config.audio)
        self.decoder = SpeechDecoder(config)
        if self.decoder.embed_tokens.weight.device.type != "meta":
            initialise_speech(self)
        self.ctc_head = ctc_head(config) if config.ctc else None

    def add_ctc_head(self, device: torch.device | None = None) -> None:
        """Gives a model without a CTC head a new one."""
        self.config = replace(self.config, ctc=True)
        self.ctc_head = ctc_head(self.config, device)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks that read text: the decoder's."""
        return self.decoder.layers

    def encode(self, mel: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        """What the decoder hears: ([Σ frames, audio width], [W + 1] int32 boundaries of the windows)."""
        if not self.config.pooled:
            return self.encoder.unpooled(mel, windows), windows.cu_conv
        counts = torch.tensor([0, *windows.tokens]).to(mel.device, non_blocking=True)
        return self.encoder(mel, windows), counts.cumsum(0).to(torch.int32)

    def forward(self, mel: Tensor, windows: Windows, tokens: Tensor, cu_text: Tensor) -> Tensor:
        """Hidden states [T, width] of packed texts, one for each window.

        Args:
            mel: [W, n_mels, F], as ``AudioEncoder`` takes it.
            windows: their layout.
            tokens: [T] ids, text after text.
            cu_text: [W + 1] int32 boundaries of the texts.
        """
        frames, cu_frames = self.encode(mel, windows)
        return self.decoder(tokens, self.decoder.packed(frames, cu_text, cu_frames, len(tokens)))

    def logits(self, hidden: Tensor) -> Tensor:
        """[T, vocabulary]."""
        return F.linear(hidden, self.decoder.embed_tokens.weight)

    def prepare(
        self, batch: Batch | DeviceBatch, sp_group: SequenceParallel | None = None, *, encode: bool = True
    ) -> DeviceBatch:
        """A batch on the model's device; one that is so already is returned as it is."""
        if isinstance(batch, DeviceBatch):
            return batch
        return DeviceBatch.of(batch, self.config, sp_group, encode=encode).to(self.device)

    def encode_audio(self, audio: AudioInputs, augment: Augment | None = None) -> tuple[Tensor, Tensor]:
        """``encode`` for the windows of a batch, their log-mel made on the device."""
        mel = ak.log_mel(audio.padded(), n_mels=self.config.audio.n_mels)
        mel = mel if augment is None else augment(mel, [mel_frames(count) for count in audio.samples])
        return self.encode(mel.to(self.dtype), audio.windows)

    def loss(
        self,
        batch: Batch | DeviceBatch,
        *,
        encoded: None = None,
        total: float | None = None,
        with_rows: bool = False,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
        ctc: CTCTerm | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Next-token cross-entropy over the batch's supervised tokens, float32; arguments as of ``Network.loss``.

        Args:
            batch: packed conversations with labels.
            encoded: features are not given from outside.
            total: what the sum is divided by; the mean if None.
            with_rows: also return the loss of every supervised token, and which tokens of the batch predict them.
            label_smoothing: ε of ``ak.linear_cross_entropy``.
            augment: what is done to log-mel windows [W, n_mels, F] with so many frames each before they are heard.
            ctc: what the CTC head adds to the loss, which is only then computed.
        """
        here = self.prepare(batch)
        assert here.targets is not None, "it was prepared without labels"
        total = max(here.supervised, 1) if total is None else total
        rows, cu_text = text_rows(here, self.config.audio_token_id)
        frames, cu_frames = self.heard(here, augment)
        longest = min(here.longest, self.config.max_positions)
        context = self.decoder.packed(frames, cu_text, cu_frames, len(rows), longest)
        hidden, weight = self.decoder(here.input_ids[rows], context), self.decoder.embed_tokens.weight
        targets = here.targets[rows]
        options = {"reduction": "sum", "supervised": len(here.rows), "label_smoothing": label_smoothing}
        loss = ak.linear_cross_entropy(hidden, weight, targets, **options) / total
        if ctc is not None:
            assert self.ctc_head is not None, "the model has no CTC head"
            of_frames = ctc_loss(frames, self.ctc_head.weight, self.ctc_head.bias, ctc.targets) / total
            ctc.told(of_frames.detach())
            loss = (1 - ctc.weight) * loss + ctc.weight * of_frames
        if not with_rows:
            return loss
        with torch.no_grad():
            wide = torch.zeros(len(here.input_ids), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
            wide[rows] = hidden
            losses = -ak.linear_logprob(wide[here.rows], weight, here.targets[here.rows])
            return loss, losses, here.tokens

    def heard(self, here: DeviceBatch, augment: Augment | None = None) -> tuple[Tensor, Tensor]:
        """Frames of a batch [Σ frames, audio width], and their boundaries [B + 1] between its conversations."""
        conversations = len(here.cu_seqlens)
        if here.audio is None:
            nothing = torch.zeros(0, self.config.audio.width, dtype=self.dtype, device=self.device)
            return nothing, torch.zeros(conversations, dtype=torch.int32, device=self.device)
        frames, cu_windows = self.encode_audio(here.audio, augment)
        before = F.pad((here.input_ids == self.config.audio_token_id).cumsum(0), (1, 0))[here.cu_seqlens.long()]
        ends = torch.tensor([0, *here.audio.windows.tokens]).to(self.device, non_blocking=True).cumsum(0)
        return frames, cu_windows[torch.searchsorted(ends, before)]


def text_rows(here: DeviceBatch, audio_token_id: int) -> tuple[Tensor, Tensor]:
    """Which tokens of a batch are text, [T − N] int64, and the boundaries of the texts, [B + 1] int32.

    How many there are the host knows, so that nothing waits for the device.
    """
    is_audio = here.input_ids == audio_token_id
    order = is_audio.to(torch.uint8).argsort(stable=True)
    before = F.pad(is_audio.cumsum(0), (1, 0))[here.cu_seqlens.long()]
    return order[: len(is_audio) - len(here.audio_rows)], (here.cu_seqlens - before).to(torch.int32)


@torch.no_grad()
def initialise_speech(model: SpeechNetwork) -> None:
    """Random weights: N(0, 0.02²), those that end a residual branch of the decoder divided by √(their number); zero
    biases. Positions of frames are sinusoids."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(std=0.02)
        if isinstance(module, nn.Conv1d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
        if isinstance(module, nn.Linear) and name.startswith("decoder") and name.endswith(("out_proj", "fc2")):
            module.weight.mul_((3 * model.config.layers) ** -0.5)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            module.bias.zero_()
    model.encoder.embed_positions.weight.copy_(sinusoids(*model.encoder.embed_positions.weight.shape))
