"""A packed batch as the network reads it: every index is made on the host before, and copied at once.

A forward and a backward over a ``DeviceBatch`` never wait for the device: ``python -m bench.syncs`` counts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from afn_distributed.dispatch import DispatchPlan
from afn_distributed.plan import Exchange
from afn_model.audio.frames import HOP, mel_frames, padded_width
from afn_model.config import ModelConfig, SpeechConfig
from afn_model.network.encoder import Windows
from afn_model.network.positions import rotary_positions
from afn_model.network.sequence_shard import SequenceShard
from afn_model.prompt.batch import IGNORED, Batch, padded_windows
from afn_model.prompt.transport import ALIGNED, view

if TYPE_CHECKING:
    from afn_distributed.hybrid import SequenceParallel

SILENCE = 100 * HOP  # samples of the window that a rank encodes which has none of its own
AHEAD = 2  # micro-batches that the host may be ahead of the device
Part = TypeVar("Part")


@dataclass(frozen=True)
class AudioInputs:
    """Audio windows to encode, and where they stand in their recordings.

    Args:
        pcm: as of ``Batch``; None where nothing is to be encoded.
        samples: valid samples of each window.
        windows: the encoder's layout of them.
        window, frame: [Σ tokens] int64, the number of each token's window in its recording, and of the token in it.
    """

    pcm: Tensor | None
    samples: list[int]
    windows: Windows
    window: Tensor
    frame: Tensor

    @staticmethod
    def of(
        batch: Batch, own: Tensor | None = None, *, pcm: Tensor | None = None, encode: bool = True
    ) -> AudioInputs | None:
        """On the host; None for a batch without audio.

        Args:
            batch: packed conversations.
            own: which windows to encode; None for all of them. A second of silence where there are none.
            pcm: ragged samples of these windows, where the batch has none.
            encode: False where features are known: samples are left out.

        Raises:
            ValueError: audios and windows that do not add up, or a window too long or without a frame.
        """
        samples = batch.samples.tolist()
        if batch.pcm is None or not samples:
            return None
        number = window_numbers(batch.windows_per_audio.tolist(), len(samples))
        if own is not None and not len(own):
            samples, number = [min(samples[0], SILENCE)], number[:1]
            pcm = batch.pcm.new_zeros(samples[0])
        elif own is not None:
            rows = batch.pcm.split(samples) if pcm is None and batch.pcm.dim() == 1 else None
            samples, number = [samples[w] for w in own.tolist()], number[own]
            if pcm is None:
                pcm = batch.pcm[own] if rows is None else torch.cat([rows[w] for w in own.tolist()])
        else:
            pcm = batch.pcm
        width = padded_width(max(samples)) if pcm.dim() == 1 else pcm.shape[1]
        lengths, frames = [mel_frames(count) for count in samples], width // HOP if encode else None
        windows = Windows.of(lengths, torch.device("cpu"), torch.float32, frames=frames)
        return AudioInputs(pcm if encode else None, samples, windows, *window_and_frame(windows.tokens, number))

    def to(self, device: torch.device | str) -> AudioInputs:
        """These on a device."""
        return moved(self, self.pcm, torch.device(device))

    def padded(self) -> Tensor:
        """[W, T_pcm] windows padded with zeros, on the samples' device."""
        assert self.pcm is not None, "the samples were left out"
        return self.pcm if self.pcm.dim() == 2 else padded_windows(self.pcm, self.samples)


def window_numbers(windows_per_audio: list[int], windows: int) -> Tensor:
    """[windows] int64, the number of each window in its audio.

    Raises:
        ValueError: audios that have another number of windows.
    """
    number = torch.cat([torch.arange(n) for n in windows_per_audio]) if windows_per_audio else torch.arange(0)
    if len(number) != windows:
        raise ValueError(f"audios have {len(number)} windows, but there are {windows}")
    return number


def window_and_frame(tokens: list[int], number: Tensor) -> tuple[Tensor, Tensor]:
    """[Σ tokens] int64 each: the number of every token's window in its recording, and of the token in its window."""
    count = torch.tensor(tokens, dtype=torch.int64)
    first = torch.repeat_interleave(count.cumsum(0) - count, count)
    return torch.repeat_interleave(number, count), torch.arange(len(first)) - first


@dataclass(frozen=True)
class DeviceBatch:
    """What one rank computes of a packed batch. T counts its own tokens.

    Args:
        input_ids: [T] int64.
        positions: [T] float32, rotary.
        cu_seqlens: [B + 1] int32 of the whole batch; a rank's part attends as ``shard`` says.
        longest: tokens of the longest conversation.
        audio_rows: [N] int64, the placeholders' rows.
        targets: [T] int64, the label of the token after each one; None without labels.
        rows: [S] int64, the supervised tokens' rows.
        tokens: [S] int64, on the host: which tokens of the whole batch these are.
        supervised: of the whole batch, the tokens that a loss is computed for.
        audio: the windows that this rank encodes; None without audio.
        shard: this rank's part; None where sequences are not shared.
    """

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    longest: int
    audio_rows: Tensor
    targets: Tensor | None
    rows: Tensor
    tokens: Tensor
    supervised: int
    audio: AudioInputs | None
    shard: SequenceShard | None

    @staticmethod
    def of(
        batch: Batch,
        config: ModelConfig | SpeechConfig,
        sp_group: SequenceParallel | None = None,
        *,
        source: int | None = None,
        encode: bool = True,
    ) -> DeviceBatch:
        """On the host; ``to`` copies it.

        Args:
            batch: packed conversations.
            config: of the model.
            sp_group: ranks that each have the whole batch and compute a part of it.
            source: the only one of them that has the samples; None where all do.
            encode: whether the audio is to be encoded.

        Raises:
            ValueError: another number of placeholders than of audio tokens; a token id past the vocabulary; what
                ``AudioInputs.of`` and ``SequenceShard.of`` raise.
        """
        input_ids, cu_seqlens = batch.input_ids.cpu(), batch.cu_seqlens.cpu()
        vocabulary = config.vocabulary
        largest = int(input_ids.max()) if len(input_ids) else 0
        if largest >= vocabulary and isinstance(config, SpeechConfig):  # which never embeds a placeholder
            largest = max(input_ids[input_ids != config.audio_token_id].tolist(), default=0)
        if largest >= vocabulary:
            raise ValueError(f"token id {largest} is past the vocabulary of {vocabulary}")
        of_audio = []
        if batch.pcm is not None:
            per_audio = batch.windows_per_audio.tolist()
            window_numbers(per_audio, len(batch.samples))
            of_audio = [int(tokens.sum()) for tokens in batch.window_tokens.split(per_audio)]
        positions = rotary_positions(input_ids, cu_seqlens, config.audio_token_id, of_audio, config.rote)
        shard = None
        if sp_group is not None:
            if isinstance(config, SpeechConfig):
                raise ValueError("texts of the speech decoder are short: ranks do not share them")
            shard = SequenceShard.of(batch, sp_group, config)
        targets = None if batch.labels is None else batch.targets.cpu()
        supervised = batch.supervised
        own, windows, pcm = torch.arange(len(input_ids)), None, None
        if shard is not None:
            own, windows = shard.tokens, shard.windows
            if source is not None and batch.pcm is not None:
                pcm = shard.own_samples(batch, source)
            input_ids, positions = input_ids[own], positions[own]
            targets = None if targets is None else targets[own]
        rows = own[:0] if targets is None else (targets != IGNORED).nonzero().squeeze(1)
        audio_rows = (input_ids == config.audio_token_id).nonzero().squeeze(1)
        if shard is None and len(audio_rows) != sum(of_audio):
            raise ValueError(f"{len(audio_rows)} audio placeholders in the prompt for {sum(of_audio)} audio embeddings")
        return DeviceBatch(
            input_ids=input_ids,
            positions=positions,
            cu_seqlens=cu_seqlens,
            longest=int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0,
            audio_rows=audio_rows,
            targets=targets,
            rows=rows,
            tokens=own[rows],
            supervised=supervised,
            audio=AudioInputs.of(batch, windows, pcm=pcm, encode=encode),
            shard=shard,
        )

    def to(self, device: torch.device | str) -> DeviceBatch:
        """The batch on a device: its samples in one copy, all indices in another; neither waits where memory is pinned.

        From pageable memory PyTorch copies while the host waits.
        """
        samples = None if self.audio is None else self.audio.pcm
        exchanges = {} if self.shard is None else self.shard.exchanges()
        here, exchanges = moved((self, exchanges), samples, torch.device(device))
        if here.shard is not None:
            here.shard.keep(exchanges)
        return here


def moved(part: Part, samples: Tensor | None, device: torch.device) -> Part:
    """A part of a batch on a device: ``samples`` in a copy of its own, all other tensors together."""
    if device.type == "cpu":
        return part
    found: dict[int, Tensor] = {}
    apply(part, lambda x: found.setdefault(id(x), x))
    small = [x for x in found.values() if x is not samples]
    here = dict(zip(map(id, small), together(small, device), strict=True))
    if samples is not None:
        here[id(samples)] = copied(samples, device)
    return apply(part, lambda x: here[id(x)])


def apply(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A part of a batch with every tensor changed that the device reads."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, tuple):
        return tuple(apply(one, change) for one in part)
    if isinstance(part, dict) and part:
        return {key: apply(one, change) for key, one in part.items()}
    if not isinstance(part, READ):
        return part
    read: Any = part
    changed = {f.name: getattr(read, f.name) for f in fields(read) if f.name not in ON_HOST.get(type(read), ())}
    return replace(read, **{name: apply(value, change) for name, value in changed.items()})


READ: tuple[Any, ...] = (DeviceBatch, AudioInputs, Windows, SequenceShard, DispatchPlan, Exchange)
ON_HOST: dict[type, tuple[str, ...]] = {DeviceBatch: ("tokens",), SequenceShard: ("tokens", "windows", "encoder")}


def together(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors on a device, made in one piece."""
    at, places = 0, []
    for x in tensors:
        places.append((at, x.dtype, tuple(x.shape)))
        at += -(-x.nbytes // ALIGNED) * ALIGNED
    buffer = torch.empty(max(at, 1), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for x, place in zip(tensors, places, strict=True):
        view(buffer, *place).copy_(x)
    buffer = buffer.to(device, non_blocking=True)
    return [view(buffer, *place) for place in places]


def copied(x: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, from page-locked memory where that is a GPU."""
    if device.type == "cuda" and not x.is_cuda and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


class CopyStream:
    """Copies micro-batches to a GPU while it computes; on other devices, when it is asked to.

    Args:
        device: where they are wanted. On a GPU the host waits before it is ``AHEAD`` micro-batches ahead: what it has
            copied by then takes memory.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.begun: deque[Any] = deque()  # events

    def __call__(self, batch: DeviceBatch) -> DeviceBatch:
        if self.stream is None:
            return batch.to(self.device)
        current = torch.cuda.current_stream(self.device)
        if len(self.begun) == AHEAD:
            self.begun.popleft().synchronize()
        self.begun.append(current.record_event())
        with torch.cuda.stream(self.stream):
            here = batch.to(self.device)
        current.wait_stream(self.stream)
        exchanges = {} if here.shard is None else here.shard.exchanges(self.device)
        apply((here, exchanges), lambda x: x.record_stream(current) or x)
        return here
