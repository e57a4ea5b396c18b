"""What bench.train measures: the cases, their batches, and the models that take them, ours and those of others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_model import AFNext, preset
from afn_model.audio.frames import SAMPLE_RATE, WINDOW, audio_tokens, padded_width, window_samples
from afn_model.config import Config
from afn_model.prompt.batch import Batch
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.sft import select
from afn_model.weights.config_json import to_json
from bench.ops import Absent

EVERYTHING = ("encoder", "adaptor", "language_model", "lm_head")


@dataclass(frozen=True)
class Case:
    """What trains, on how many packed tokens with clips of at most how many seconds, and the goal in words."""

    name: str
    trains: tuple[str, ...]
    context: int
    longest: float
    recompute: str = "none"
    goal: str = ""


CASES = (
    Case("pre-1", ("adaptor",), 8192, 30, goal="18,000 tokens/s on an H100"),
    Case("pre-2", ("encoder", "adaptor"), 8192, 60, goal="15,000 tokens/s on an H100"),
    Case("full-8k", EVERYTHING, 8192, 60),
    Case("full-24k", EVERYTHING, 24_576, 600, "full", "MFU 52 %"),
    Case("full-128k", EVERYTHING, 131_072, 1800, "full", "MFU 42 %"),
)


def configuration(name: str, layers: int | None) -> Config:
    """A preset with so many language-model layers, its audio tokens inside its vocabulary."""
    config = preset(name)
    last = config.text.vocab_size - 1
    if config.audio_eos_token_id is not None and config.audio_eos_token_id > last:
        ids = {"audio_token_id": last - 2, "audio_bos_token_id": last - 1, "audio_eos_token_id": last}
        config = replace(config, **ids)
    return config if layers is None else replace(config, text=replace(config.text, layers=layers))


def lengths(case: Case, random: np.random.Generator) -> Iterator[tuple[float, int, int]]:
    """Seconds of audio, tokens of the question and of the answer, until the context is full; the last is text alone.

    The kinds of clips are those of bench/packing.py: speech, 10 s sounds, music and talk, long recordings.
    """
    room = case.context
    for _ in range(10_000):
        music, long = np.exp(random.uniform(np.log(30), np.log(300))), np.exp(random.uniform(np.log(300), np.log(1800)))
        kinds = (random.uniform(1, 30), 10.0, music, long)
        seconds = kinds[random.choice(4, p=[0.55, 0.25, 0.15, 0.05])]
        question, answer = random.integers(16, 80), min(int(np.exp(random.normal(4.2, 0.8))) + 4, 1000)
        tokens = audio_tokens(round(seconds * SAMPLE_RATE)) + 2 + question + answer
        if seconds <= case.longest and tokens <= room - 8:
            room -= tokens
            yield seconds, int(question), int(answer)
        if room < 150:
            break
    yield 0.0, room // 2, room - room // 2


def make_batch(config: Config, case: Case, seed: int) -> Batch:
    """A packed sequence of exactly the context, int16 noise with a changing loudness for audio."""
    random = np.random.default_rng(seed)
    ids, labels, starts, samples, per_audio = [], [], [0], [], []
    for seconds, question, answer in lengths(case, random):
        count = round(seconds * SAMPLE_RATE)
        sound = [config.audio_token_id] * audio_tokens(count)
        if sound:
            sound = [config.audio_bos_token_id, *sound, config.audio_eos_token_id]
            samples += window_samples(count)
            per_audio.append(len(window_samples(count)))
        text = random.integers(0, min(config.audio_token_id, config.text.vocab_size), question + answer)
        ids += [np.array(sound, np.int64), text]
        labels += [np.full(len(sound) + question, -100), text[question:]]
        starts.append(starts[-1] + len(sound) + question + answer)
    pcm = np.zeros((len(samples), padded_width(max(samples))), np.int16)
    for row, count in zip(pcm, samples, strict=True):
        row[:count] = random.integers(-8000, 8000, count, np.int16) >> random.integers(0, 4)
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids)),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        pcm=torch.from_numpy(pcm),
        samples=torch.tensor(samples),
        windows_per_audio=torch.tensor(per_audio),
        labels=torch.from_numpy(np.concatenate(labels)),
    )


class Batches(torch.utils.data.Dataset):
    """Batches by their number, each another one."""

    def __init__(self, config: Config, case: Case):
        self.config, self.case = config, case

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return vars(make_batch(self.config, self.case, number))


@dataclass(frozen=True)
class Variant:
    """A model on the device: how it takes a batch, and its forward and backward, which returns the loss."""

    model: nn.Module
    prepare: Callable[[Batch], Any]
    step: Callable[[Any], Tensor]
    note: str = ""


@contextmanager
def weights_on(device: str) -> Iterator[torch.dtype]:
    """Within it, weights are made on the device, in bf16 on a GPU and in float32 on a CPU; yields that dtype."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield dtype
    finally:
        torch.set_default_dtype(before)


def ours(config: Config, case: Case, device: str) -> Variant:
    with weights_on(device):
        model = AFNext(config).train()
    select(model, case.trains)
    checkpoint_blocks(model, case.recompute)

    def step(batch: Batch) -> Tensor:
        loss = model.loss(batch)
        loss.backward()
        return loss.detach()

    return Variant(model, lambda batch: batch, step)


def transformers(config: Config, case: Case, device: str, liger: bool = False) -> Variant:
    """The same model in transformers, run as well as it can be.

    Its SDPA has no packed causal attention that takes the flash kernel (a mask of blocks rules that out), so sequences
    are sorted by length and padded on the right into groups of at most the context's tokens. Causal attention never
    looks at padding that comes last, so no mask is given and the flash kernel runs. A group is one forward and
    backward. All windows are padded to 30 s, as its encoder wants them.
    """
    try:
        from transformers import MusicFlamingoConfig, MusicFlamingoForConditionalGeneration
    except ImportError as error:
        raise Absent("transformers with MusicFlamingo is not installed") from error
    if liger:
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, apply_liger_kernel_to_qwen2
        except ImportError as error:
            raise Absent("liger-kernel is not installed") from error
        # It knows not this model but the Qwen2 inside: norms, rotary and SwiGLU here, the loss in the step below.
        apply_liger_kernel_to_qwen2(cross_entropy=False, fused_linear_cross_entropy=False)
        fused = LigerFusedLinearCrossEntropyLoss()
    raw = to_json(config, "bfloat16")
    keys = ("audio_config", "text_config", "audio_token_id", "audio_bos_token_id", "audio_eos_token_id")
    whole = MusicFlamingoConfig(**{key: raw[key] for key in keys}, rope_parameters=raw["rope_parameters"])
    whole._attn_implementation = "sdpa"
    with weights_on(device) as dtype:
        model = MusicFlamingoForConditionalGeneration(whole).train()
    parts = {"encoder": "model.audio_tower", "adaptor": "model.multi_modal_projector"}
    parts |= {"language_model": "model.language_model", "lm_head": "lm_head"}
    select(model, tuple(parts[name] for name in case.trains))
    if case.recompute == "full":
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def step(groups: list[tuple[dict, Tensor, float]]) -> Tensor:
        total = torch.zeros((), device=device)
        for given, labels, share in groups:
            if liger:
                hidden = model.model(**given, use_cache=False).last_hidden_state
                # Rows without a label go no further, which spares Liger the padding too.
                rows = labels != -100
                loss = fused(model.lm_head.weight, hidden[rows], labels[rows])
            else:
                # Labels are shifted already.
                loss = model(**given, labels=labels, shift_labels=labels, use_cache=False).loss
            if loss.requires_grad:  # text alone reaches nothing that trains where the language model is frozen
                (share * loss).backward()
            total += share * loss.detach()
        return total

    return Variant(model, lambda batch: grouped(batch, config, case, device, dtype), step, "padded groups")


def grouped(
    batch: Batch, config: Config, case: Case, device: str, dtype: torch.dtype
) -> list[tuple[dict, Tensor, float]]:
    """What transformers takes for a packed batch: (inputs, shifted labels, share of the supervised tokens) by group."""
    bounds = batch.cu_seqlens.tolist()
    labels = batch.targets
    windows = torch.zeros(len(batch.samples), WINDOW, dtype=batch.pcm.dtype)
    windows[:, : batch.pcm.shape[1]] = batch.pcm
    mel = ak.log_mel(windows.to(device), n_mels=config.audio.n_mels).to(dtype)
    mel_mask = (torch.arange(3000) < batch.mel_lengths[:, None]).long().to(device)
    of_sequence, audio, row = [], 0, 0
    for start, stop in itertools.pairwise(bounds):
        heard = bool((batch.input_ids[start:stop] == config.audio_token_id).any())
        count = int(batch.windows_per_audio[audio]) if heard else 0
        of_sequence.append(range(row, row + count))
        audio, row = audio + heard, row + count
    groups: list[list[int]] = []
    for number in sorted(range(len(of_sequence)), key=lambda n: bounds[n] - bounds[n + 1]):
        longest = bounds[groups[-1][0] + 1] - bounds[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= case.context and fits(bounds, groups[-1][0], number):
            groups[-1].append(number)
        else:
            groups.append([number])
    found = []
    for group in groups:
        pad = nn.utils.rnn.pad_sequence
        ids = pad([batch.input_ids[bounds[n] : bounds[n + 1]] for n in group], True, 0).to(device)
        wanted = pad([labels[bounds[n] : bounds[n + 1]] for n in group], True, -100).to(device)
        rows = [row for n in group for row in of_sequence[n]]
        given = {"input_ids": ids}
        if rows:
            given |= {"input_features": mel[rows], "input_features_mask": mel_mask[rows]}
        share = float((wanted != -100).sum() / (labels != -100).sum())
        if share:
            found.append((given, wanted, share))
    return found


def fits(bounds: list[int], first: int, number: int) -> bool:
    """Whether a sequence is long enough to be padded to the first of a group: at least three quarters of it."""
    return 4 * (bounds[number + 1] - bounds[number]) >= 3 * (bounds[first + 1] - bounds[first])


VARIANTS: dict[str, Callable[[Config, Case, str], Variant]] = {
    "ours": ours,
    "transformers": transformers,
    "liger": lambda config, case, device: transformers(config, case, device, liger=True),
}
