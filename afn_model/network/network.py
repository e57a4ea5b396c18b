"""Audio Flamingo Next: audio encoder → rotary time embedding → adaptor → language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.audio.frames import conv_frames, token_frames
from afn_model.config import ModelConfig
from afn_model.network.adaptor import Adaptor
from afn_model.network.device_batch import AudioInputs, DeviceBatch, window_and_frame, window_numbers
from afn_model.network.encoder import AudioEncoder, Windows, sinusoids
from afn_model.network.head import LanguageModelHead, target_logprobs
from afn_model.network.language_model import LanguageModel
from afn_model.network.linear import operands
from afn_model.network.positions import rotary_positions
from afn_model.network.shared_prefix import SharedPrefix
from afn_model.prompt.batch import Batch

if TYPE_CHECKING:
    from afn_distributed.hybrid import SequenceParallel


class Network(nn.Module):
    """The equations of the whole model; ``afn_model.AFNext`` adds checkpoints and generation."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config.audio)
        self.adaptor = Adaptor(config.audio.width, config.text.width)
        self.language_model = LanguageModel(config.text)
        self.lm_head = LanguageModelHead(config.text.width, config.text.vocab_size, bias=False)
        if self.lm_head.weight.device.type != "meta":
            initialise(self)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks that read text: the language model's."""
        return self.language_model.layers

    @property
    def text_advance(self) -> float:
        """Positions from one text token to the next: one, or the configured step in the paper's reading."""
        return self.config.rote.text_step if self.config.rote.reading == "paper" else 1.0

    def encode(self, mel: Tensor, mel_lengths: list[int]) -> tuple[Tensor, list[int]]:
        """Encoder features of every audio token.

        Args:
            mel: [W, n_mels, F] log-mel of all windows (see ``AudioEncoder.forward``).
            mel_lengths: valid mel frames of each window.

        Returns:
            [Σ tokens, audio width], window after window, and the tokens of each window.

        Raises:
            ValueError: another number of lengths than of windows, or a length outside 1..3000.
        """
        if len(mel_lengths) != len(mel):
            raise ValueError(f"{len(mel_lengths)} mel lengths for {len(mel)} audio windows")
        windows = Windows.of(mel_lengths, self.device, self.dtype)
        return self.encoder(mel.to(self.device, self.dtype), windows), windows.tokens

    def project(self, features: Tensor, tokens: list[int], windows_per_audio: list[int]) -> Tensor:
        """Encoder features [Σ tokens, audio width] to embeddings [Σ tokens, text width]: RoTE, then the adaptor.

        Args:
            features: as ``encode`` returns them.
            tokens: audio tokens of each window.
            windows_per_audio: how many consecutive windows each audio has; each has a clock of its own.

        Raises:
            ValueError: audios and windows that do not add up.
        """
        number = window_numbers(windows_per_audio, len(tokens))
        return self.adapt(features, *(x.to(self.device) for x in window_and_frame(tokens, number)))

    def adapt(self, features: Tensor, window: Tensor, frame: Tensor) -> Tensor:
        """``project`` for features whose places are known: windows and frames [Σ tokens] int64 in their recordings."""
        rote = self.config.rote
        if rote.reading == "checkpoint" and len(features):
            features = ak.rote(
                features,
                window,
                frame,
                rotary_dim=int(self.config.audio.width * rote.fraction),
                theta=rote.theta,
                period=rote.period,
                window_factor=rote.window_factor,
                frame_factor=rote.frame_factor,
                phase_dtype=torch.float64 if rote.accurate else torch.float32,
            )
        return self.adaptor(features)

    def prepare(
        self, batch: Batch | DeviceBatch, sp_group: SequenceParallel | None = None, *, encode: bool = True
    ) -> DeviceBatch:
        """A batch as the network reads it, on the model's device; one that is so already is returned as it is.

        Args:
            batch: packed conversations.
            sp_group: ranks that each have the whole batch and compute a part of it.
            encode: whether its audio is to be encoded; False where features are given.

        Raises:
            ValueError: what ``DeviceBatch.of`` raises.
        """
        if isinstance(batch, DeviceBatch):
            return batch
        return DeviceBatch.of(batch, self.config, sp_group, encode=encode).to(self.device)

    def encode_batch(self, batch: Batch | DeviceBatch) -> tuple[Tensor, list[int]] | None:
        """``encode`` for the audio of a packed batch, its log-mel made on the model's device; None without audio."""
        if isinstance(batch, DeviceBatch):
            audio = batch.audio
        else:
            audio = AudioInputs.of(batch)
            audio = audio and audio.to(self.device)
        if audio is None:
            return None
        mel = ak.log_mel(audio.padded(), n_mels=self.config.audio.n_mels)
        return self.encoder(mel.to(self.dtype), audio.windows), audio.windows.tokens

    def embed(self, input_ids: Tensor, audio: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """Token embeddings [T, width] with the audio embeddings [N, width] in the placeholders' rows.

        Args:
            input_ids: [T] int64.
            audio: [N, width] embeddings.
            rows: [N] int64, the placeholders' rows, where they are known and all ids are in the vocabulary.

        Raises:
            ValueError: another number of placeholders than of audio embeddings; a token id past the vocabulary.
        """
        if rows is None:
            vocabulary = self.config.text.vocab_size
            if input_ids.device.type == "cpu" and len(input_ids) and int(input_ids.max()) >= vocabulary:
                raise ValueError(f"token id {int(input_ids.max())} is past the vocabulary of {vocabulary}")
            rows = (input_ids == self.config.audio_token_id).nonzero().squeeze(1)
        embeddings = 0 if audio is None else len(audio)
        if len(rows) != embeddings:
            raise ValueError(f"{len(rows)} audio placeholders in the prompt for {embeddings} audio embeddings")
        x_TD = self.language_model.embed_tokens(input_ids)
        return x_TD if audio is None else ak.merge_embeddings(x_TD, audio.to(x_TD.dtype), rows)

    def hidden(
        self,
        batch: Batch | DeviceBatch,
        *,
        encoded: tuple[Tensor, list[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Final hidden states [T, width] of a packed batch, and the positions [T] they were computed at.

        Args:
            batch: packed conversations, or what ``prepare`` made of them; T then counts this rank's tokens.
            encoded: what ``encode_batch`` returned for this batch, when it is known already.
        """
        here = self.prepare(batch, encode=encoded is None)
        x_TD, positions = self.embed_batch(here, encoded)
        if here.shard is not None:
            return self.language_model(x_TD, positions, shared=here.shard), positions
        boundaries = {"cu_seqlens": here.cu_seqlens, "longest": here.longest}
        return self.language_model(x_TD, positions, **boundaries), positions

    def embed_batch(
        self, batch: Batch | DeviceBatch, encoded: tuple[Tensor, list[int]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the language model reads of a packed batch: embeddings [T, width] and positions [T].

        Of a batch that ranks share, those of this rank's tokens; the group encodes every window once.
        """
        here = self.prepare(batch, encode=encoded is None)
        encoded = self.encode_batch(here) if encoded is None else encoded
        audio = None
        if encoded is not None and here.audio is not None:
            audio = self.adapt(encoded[0], here.audio.window, here.audio.frame)
            audio = audio if here.shard is None else here.shard.routed(audio)
        return self.embed(here.input_ids, audio, here.audio_rows), here.positions

    def positions(self, batch: Batch) -> Tensor:
        """Rotary positions [T] of a packed batch."""
        tokens_per_audio = []
        if batch.pcm is not None:
            audios = batch.window_tokens.split(batch.windows_per_audio.tolist())
            tokens_per_audio = [int(windows.sum()) for windows in audios]
        input_ids, cu_seqlens = batch.input_ids.to(self.device), batch.cu_seqlens.to(self.device)
        return rotary_positions(input_ids, cu_seqlens, self.config.audio_token_id, tokens_per_audio, self.config.rote)

    def answer_logprobs(
        self,
        batch: Batch,
        answers: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float = 1.0,
        encoded: tuple[Tensor, list[int]] | None = None,
    ) -> Tensor:
        """log softmax(scores / temperature) of every answer token, with each prompt and its audio computed once.

        Args:
            batch: packed prompts, each ending where its answers begin.
            answers: token ids of the answers to each prompt, stop tokens included.
            temperature: what the scores are divided by.
            encoded: what ``encode_batch`` returned for this batch, when it is known already.

        Returns:
            [Σ answer lengths] float32, answer after answer; with gradient.

        Raises:
            ValueError: answers to another number of prompts, or an answer without tokens.
        """
        shared = SharedPrefix.of(batch.cu_seqlens, answers, self.device)
        x_TD, positions = self.embed_batch(batch, encoded)
        x_TD = torch.cat((x_TD, self.language_model.embed_tokens(shared.input_ids)))
        later = positions[shared.last] + self.text_advance * shared.steps
        hidden = self.language_model(x_TD, torch.cat((positions, later.to(positions.dtype))), shared=shared)
        hidden, weight = operands(self.lm_head, hidden[shared.rows])
        return target_logprobs(hidden, weight, shared.targets, temperature)

    def loss(
        self,
        batch: Batch | DeviceBatch,
        *,
        encoded: tuple[Tensor, list[int]] | None = None,
        total: float | None = None,
        with_rows: bool = False,
        sp_group: SequenceParallel | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Next-token cross-entropy over the batch's supervised tokens, float32.

        Args:
            batch: packed conversations with labels, or what ``prepare`` made of them: nothing then waits for the
                device.
            encoded: what ``encode_batch`` returned for this batch, when it is known already.
            total: what the sum is divided by, where the batch is part of a larger one; the mean if None.
            with_rows: also return the loss of every supervised token, in order and without gradient, and which tokens
                of the batch predict them.
            sp_group: ranks that each hold the whole batch and compute a part of it; the result is this rank's part of
                the loss. What was prepared has its group already.
        """
        if isinstance(batch, Batch) and batch.labels is None:
            raise ValueError("the batch has no labels: make it with processor(..., training=True)")
        here = self.prepare(batch, sp_group, encode=encoded is None)
        assert here.targets is not None, "it was prepared without labels"
        total = max(here.supervised, 1) if total is None else total
        hidden, _ = self.hidden(here, encoded=encoded)
        targets, (hidden, weight) = here.targets, operands(self.lm_head, hidden)
        loss = ak.linear_cross_entropy(hidden, weight, targets, reduction="sum", supervised=len(here.rows)) / total
        if not with_rows:
            return loss
        with torch.no_grad():
            losses = -ak.linear_logprob(hidden[here.rows], weight, targets[here.rows])
            return loss, losses, here.tokens

    def logits(
        self,
        input_ids: Tensor,
        mel: Tensor | None = None,
        mel_lengths: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        windows_per_audio: list[int] | None = None,
    ) -> Tensor:
        """Next-token scores of padded sequences.

        Args:
            input_ids: [B, S] int64.
            mel: [W, n_mels, 3000] log-mel of every window of every audio, in order of appearance.
            mel_lengths: [W] valid mel frames.
            attention_mask: [B, S], 0 at padding on either side; None means no padding.
            windows_per_audio: windows of each audio; None means each run of placeholders is one audio.

        Returns:
            [B, S, vocabulary]; rows of padding are zeros.

        Raises:
            ValueError: placeholders and windows that do not match.
        """
        kept = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        packed = input_ids[kept].to(self.device)
        cu_seqlens = F.pad(kept.sum(1).cumsum(0), (1, 0)).to(self.device, torch.int32)
        audio, tokens_per_audio = None, []
        if mel is not None:
            if mel_lengths is None:
                raise ValueError("mel comes without mel_lengths")
            lengths = mel_lengths.tolist()
            runs = placeholder_runs(input_ids.masked_fill(~kept, -1), self.config.audio_token_id)
            windows_per_audio = windows_per_audio or windows_of_runs(runs, lengths)
            audio = self.project(*self.encode(mel, lengths), windows_per_audio)
            tokens_per_audio = runs
        positions = rotary_positions(packed, cu_seqlens, self.config.audio_token_id, tokens_per_audio, self.config.rote)
        hidden = self.language_model(self.embed(packed, audio), positions, cu_seqlens=cu_seqlens)
        logits = self.lm_head(hidden)
        out = logits.new_zeros(*input_ids.shape, logits.shape[-1])
        out[kept.to(self.device)] = logits
        return out


@torch.no_grad()
def initialise(model: Network) -> None:
    """Random weights: N(0, 1 / fan-in), but N(0, 0.02²) in the encoder's blocks; zero biases.

    Token embeddings are N(0, 1) and the head starts as a copy of them divided by √width, so that a token carried to
    the end of the residual stream is already the likeliest answer. Audio positions are sinusoids.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
    for module in model.encoder.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=0.02)
    for name, weight in model.language_model.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_((2 * len(model.language_model.layers)) ** -0.5)
    embedding = model.language_model.embed_tokens.weight
    embedding.normal_()
    model.lm_head.weight.copy_(embedding).mul_(embedding.shape[1] ** -0.5)
    model.encoder.embed_positions.weight.copy_(sinusoids(*model.encoder.embed_positions.weight.shape))


def placeholder_runs(input_ids: Tensor, audio_token_id: int) -> list[int]:
    """Lengths of the runs of placeholders in padded sequences [B, S], in reading order."""
    is_audio = F.pad((input_ids == audio_token_id).int(), (1, 1))
    edges = is_audio.diff(dim=1)
    starts, stops = (edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1]
    return (stops - starts).tolist()


def windows_of_runs(runs: list[int], mel_lengths: list[int]) -> list[int]:
    """How many windows each run of placeholders takes up.

    Raises:
        ValueError: a run that no whole number of windows fills.
    """
    counts, w = [], 0
    for index, run in enumerate(runs):
        first, filled = w, 0
        while filled < run and w < len(mel_lengths):
            filled += token_frames(conv_frames(mel_lengths[w]))
            w += 1
        if filled != run:
            raise ValueError(f"audio {index} has {run} placeholders but its windows give {filled} embeddings")
        counts.append(w - first)
    if w != len(mel_lengths):
        raise ValueError(f"{len(mel_lengths)} audio windows but the placeholders take {w}")
    return counts
