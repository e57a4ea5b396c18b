"""Training an encoder with its text decoder: a stage of method ``asr`` against transformers' Seq2SeqTrainer.

    python -m bench.asr_throughput [--out bench/results/cpu/asr_throughput.jsonl] [--rounds 5]

Both train the same small Whisper from the same weights on the same recordings (ragged, 2 to 28 s), each once in a turn,
in as many steps: float32, AdamW (fused), a constant rate, clipping at 1, this process and its threads. No evaluation
and nothing saved inside the time. Turns alternate and the median of the rounds counts; the first round warms up.

Ours packs texts and recordings as they are. The peer's encoder takes no other length than ``max_source_positions``
(its forward raises), so all recordings are padded to one; it is given the best that it can have: as many positions as
the longest recording needs rather than 30 s, recordings grouped by the lengths of their texts, SDPA. Its log-mel and
tokens are in memory before the clock starts; ours reads files, packs and makes log-mel inside the time.

Before that, both trainers run a few steps on recordings of 30 s, where the peer pads nothing, and their losses have to
be the same.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from afn_model.audio.frames import SAMPLE_RATE, WINDOW
from afn_model.data import index
from afn_model.data.index import Corpus
from afn_model.data.packing import pack
from afn_model.data.records import parse_sample
from afn_model.files import write_text
from afn_model.hashing import key
from afn_model.host import version
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.train.callbacks import Callback
from afn_model.train.curriculum import read_curriculum
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from bench.measure import main

RECORDINGS, BATCH, SHORTEST, LONGEST = 64, 8, 2.0, 28.0
MEDIAN, SPREAD, WORDS_PER_SECOND = 9.0, 0.6, 2.5  # of a lognormal, seconds and σ; words as in read speech
RATE, SEED, TEXT_POSITIONS = 1e-3, 0, 256
EQUAL, EQUAL_STEPS, TOLERANCE = 4, 3, 1e-3  # recordings of 30 s, steps, and how far losses may be apart
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CURRICULUM = """
seed: {seed}
datasets: {{spoken: spoken.jsonl}}
stages:
  speech:
    method: asr
    trains: [encoder, decoder]
    context: {context}
    batch_tokens: {context}
    epochs: {epochs}
    lr: {rate}
    warmup: 0
    schedule: constant
    betas: [0.9, 0.95]
    clip: 1.0
    blend: {{spoken: 1}}
"""


@dataclass(frozen=True)
class PairShape:
    """Of a Whisper whose encoder and decoder are alike; ``spread`` is the deviation of its random weights."""

    width: int = 192
    layers: int = 4
    heads: int = 3
    n_mels: int = 80
    vocabulary: int = 2048
    spread: float = 0.02


@dataclass(frozen=True)
class TrainedTurn:
    """What one training run did.

    Args:
        seconds: of the loop, by the clock.
        cpu: seconds of the loop, of this process's threads together; others on the machine disturb them less.
        losses: of each step.
        tokens: heard and read.
        memory: bytes by which the process was larger than before, at most.
    """

    seconds: float
    cpu: float
    losses: list[float]
    tokens: int
    memory: int | None


class PairBase:
    """Recordings with their texts, and the model that both start from, in a folder.

    Args:
        folder: is written to.
        seconds: of each recording.
        shape: of the model.
    """

    def __init__(self, folder: Path, seconds: Sequence[float], shape: PairShape):
        self.folder, self.seconds, self.shape = folder, seconds, shape
        self.positions = min(50 * math.ceil(max(seconds)), 1500)
        texts = write_recordings(folder, seconds)
        tokenizer = make_tokenizer(texts, shape.vocabulary)
        AFNextProcessor(tokenizer, chat_template=TEMPLATE).save_pretrained(folder / "base")
        self.end = tokenizer.token_to_id("<|im_end|>")
        self.model().save_pretrained(folder / "base")
        self.processor = AFNextProcessor.from_pretrained(folder / "base", whole_windows=False)
        self.prepared = []
        corpus = Corpus(folder / "spoken.jsonl")
        for record in range(len(corpus)):
            turns = parse_sample(corpus[record], corpus.folder).turns
            self.prepared.append(self.processor.prepare(turns, training=True))

    def model(self) -> Any:
        """The peer, with the same random weights at every call."""
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        shape = self.shape
        size = {"d_model": shape.width, "vocab_size": shape.vocabulary, "num_mel_bins": shape.n_mels}
        for part in ("encoder", "decoder"):
            size |= {f"{part}_layers": shape.layers, f"{part}_attention_heads": shape.heads}
            size |= {f"{part}_ffn_dim": 4 * shape.width}
        size |= {"max_source_positions": self.positions, "max_target_positions": TEXT_POSITIONS}
        special = dict.fromkeys((f"{name}_token_id" for name in ("pad", "bos", "eos", "decoder_start")), self.end)
        torch.manual_seed(SEED)
        config = WhisperConfig(**size, **special, init_std=shape.spread, begin_suppress_tokens=None)
        return WhisperForConditionalGeneration(config)

    @property
    def tokens(self) -> list[int]:
        """Of each recording with its text, 25 a second of audio."""
        return [len(one.ids) for one in self.prepared]

    def context(self, steps: int) -> int:
        """The smallest, in steps of 16, with which all recordings are packed in so many sequences."""
        context = 16 * math.ceil(max(sum(self.tokens) / steps, *self.tokens) / 16)
        while len(pack(self.tokens, context, seed=key(SEED, 0)).cu) - 1 > steps:
            context += 16
        return context

    def rows(self) -> list[dict[str, torch.Tensor]]:
        """What the peer takes: for each recording its log-mel, and what its decoder reads and has to write."""
        from transformers import WhisperFeatureExtractor

        extract, rows = WhisperFeatureExtractor(feature_size=self.shape.n_mels), []
        for one in self.prepared:
            pcm = one.clips[0].numpy()
            mel = extract(pcm, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
            text = one.ids != self.processor.sound_id
            ids, labels = one.ids[text], one.labels[text]
            mel = mel[:, : 2 * self.positions].clone()
            rows.append({"input_ids": ids[:-1], "labels": labels[1:], "input_features": mel})
        return rows


def write_recordings(folder: Path, seconds: Sequence[float]) -> list[str]:
    """Noise that swells and fades as syllables do, with made words; a corpus with its index. Returns the texts."""
    rng, lines, texts = np.random.default_rng(SEED), [], []
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(rng.choice(syllables, int(rng.integers(1, 4)))) for _ in range(400)]
    for number, length in enumerate(seconds):
        count = round(length * SAMPLE_RATE)
        swell = np.abs(np.sin(2 * np.pi * 2 * np.arange(count) / SAMPLE_RATE))
        wave = (0.1 * swell * rng.standard_normal(count)).clip(-1, 1)
        soundfile.write(folder / f"{number}.wav", wave, SAMPLE_RATE)
        texts.append(" ".join(rng.choice(words, max(1, round(WORDS_PER_SECOND * length)))))
        talk = [{"from": "human", "value": "<sound>\nTranscribe."}, {"from": "gpt", "value": texts[-1]}]
        line = {"id": str(number), "sound": f"{number}.wav", "duration": count / SAMPLE_RATE, "conversations": talk}
        lines.append(json.dumps(line) + "\n")
    write_text(folder / "spoken.jsonl", "".join(lines))
    index.build(folder / "spoken.jsonl")
    return texts


def now() -> np.ndarray:
    """Seconds by the clock, and of this process's threads."""
    return np.array([time.perf_counter(), time.process_time()])


class OurClock(Callback):
    """From a stage's start to its last step, the first batch included."""

    def __init__(self):
        self.times, self.rows = [], []

    def on_start(self, facts: Mapping[str, Any]) -> None:
        self.times.append(now())

    def on_row(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.times.append(now())


def ours(base: PairBase, batch: int, epochs: int) -> TrainedTurn:
    """A stage of the trainer, so many recordings a step on average."""
    context = base.context(math.ceil(len(base.seconds) / batch))
    text = CURRICULUM.format(seed=SEED, context=context, epochs=epochs, rate=RATE)
    write_text(base.folder / "speech.yaml", text)
    curriculum, clock = read_curriculum(base.folder / "speech.yaml"), OurClock()
    layout = RunLayout(workers=0, log_every=1, checkpoint_every=10**6, keep_finished=0)
    options = Options(show=False, tensorboard=False, callbacks=(clock,))
    with tempfile.TemporaryDirectory(dir=base.folder) as out, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(optimiser step|the learning rate reaches|samples of an epoch)")
        memory = watched(lambda: train(curriculum, base.folder / "base", out, layout=layout, options=options))
    tokens = sum(row["tokens"] for row in clock.rows)
    return TrainedTurn(
        *(clock.times[-1] - clock.times[0]).tolist(), [row["loss"] for row in clock.rows], tokens, memory
    )


def theirs(base: PairBase, rows: list[dict[str, torch.Tensor]], batch: int, epochs: int) -> TrainedTurn:
    """Seq2SeqTrainer, so many recordings a step."""
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    times = []

    class PeerClock(TrainerCallback):
        def on_train_begin(self, args, state, control, **given):
            times.append(now())

        def on_step_end(self, args, state, control, **given):
            times.append(now())

    def collate(some: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = pad_sequence([row["input_ids"] for row in some], True, base.end)
        labels = pad_sequence([row["labels"] for row in some], True, -100)
        mel = torch.stack([row["input_features"] for row in some])
        return {"input_features": mel, "decoder_input_ids": ids, "labels": labels}

    with tempfile.TemporaryDirectory(dir=base.folder) as out:
        arguments = Seq2SeqTrainingArguments(
            out,
            per_device_train_batch_size=batch,
            num_train_epochs=epochs,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        given = {"args": arguments, "train_dataset": rows, "data_collator": collate, "callbacks": [PeerClock()]}
        trainer = Seq2SeqTrainer(model=base.model(), **given)
        trainer.remove_callback(PrinterCallback)
        memory = watched(trainer.train)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return TrainedTurn(*(times[-1] - times[0]).tolist(), losses, epochs * sum(base.tokens), memory)


def watched(call: Callable[[], object]) -> int | None:
    """Bytes by which the process was at most larger in a call than before it; None where Linux does not say."""
    status = Path("/proc/self/status")
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or what an earlier run has left would be used again
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
        before = _kilobytes(status, "VmRSS")
    except (OSError, AttributeError):
        call()
        return None
    call()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))


def losses_on_equal_lengths(folder: Path, shape: PairShape, count: int, steps: int) -> tuple[list[float], list[float]]:
    """Losses of both trainers, ours first, on a batch of recordings of 30 s that comes again in every step."""
    base = PairBase(folder, [WINDOW / SAMPLE_RATE] * count, shape)
    return ours(base, count, steps).losses, theirs(base, base.rows(), count, steps).losses


def apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


def ragged() -> list[float]:
    """Seconds of the recordings."""
    drawn = np.random.default_rng(SEED).lognormal(math.log(MEDIAN), SPREAD, RECORDINGS)
    return [round(float(seconds), 2) for seconds in drawn.clip(SHORTEST, LONGEST)]


def learnt(who: str, turn: TrainedTurn, tokens: int) -> None:
    """RuntimeError where a run did not train, or on something else than every recording once."""
    if not all(map(math.isfinite, turn.losses)) or turn.losses[-1] >= turn.losses[0]:
        raise RuntimeError(f"the losses of {who} are {turn.losses}, so its times say nothing")
    if turn.tokens != tokens:
        raise RuntimeError(f"{who} trained on {turn.tokens} tokens, but the recordings have {tokens}")


def measure(rounds: int, device: str, shape: PairShape | None = None) -> dict:
    """Measures and prints; returns the record that ``main`` writes."""
    shape = shape or PairShape()
    with tempfile.TemporaryDirectory() as temporary:
        # Larger weights: what is heard has to count for the loss.
        equal = losses_on_equal_lengths(Path(temporary), replace(shape, spread=0.1), EQUAL, EQUAL_STEPS)
    difference = apart(*equal)
    print(f"losses on equal lengths: {equal[0]}, {equal[1]}")
    if difference > TOLERANCE:
        raise RuntimeError(f"losses differ by {difference:.2g} on recordings of 30 s: {equal[0]}, {equal[1]}")
    turns: dict[str, list[TrainedTurn]] = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as temporary:
        base = PairBase(Path(temporary), ragged(), shape)
        rows = base.rows()
        calls = {"ours": lambda: ours(base, BATCH, 1), "transformers": lambda: theirs(base, rows, BATCH, 1)}
        for number in range(rounds + 1):
            for who, call in calls.items():
                turn = call()
                learnt(who, turn, sum(base.tokens))
                losses = f"{turn.losses[0]:.3f} to {turn.losses[-1]:.3f}"
                print(
                    f"round {number} {who:<13}{turn.seconds:8.2f} s, {turn.cpu:.2f} s of CPU  loss {losses}", flush=True
                )
                if number:  # the first warms up
                    turns[who].append(turn)
    audio, tokens = sum(base.seconds), sum(base.tokens)
    found = {who: summary(some, audio, tokens) for who, some in turns.items()}
    ratio = found["transformers"]["seconds"] / found["ours"]["seconds"]
    each = [theirs.seconds / mine.seconds for mine, theirs in zip(*turns.values(), strict=True)]
    of_cpu = found["transformers"]["cpu_seconds"] / found["ours"]["cpu_seconds"]
    print(f"ours is {ratio:.2f} x as fast, {of_cpu:.2f} x by CPU seconds")
    return {
        "benchmark": "asr_throughput",
        "shape": vars(shape),
        "recordings": RECORDINGS,
        "recordings_per_step": BATCH,
        "audio_seconds": round(audio, 1),
        "longest": max(base.seconds),
        "padded": round(1 - audio / (RECORDINGS * base.positions / 50), 3),
        "tokens": tokens,
        "context": base.context(math.ceil(RECORDINGS / BATCH)),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        **found,
        "ratio": round(ratio, 2),
        "ratio_of_cpu": round(of_cpu, 2),
        "ratios": [round(one, 2) for one in each],
        "equal_lengths": {"ours": equal[0], "transformers": equal[1], "apart": difference},
        "transformers_version": version("transformers"),
    }


def summary(turns: list[TrainedTurn], audio: float, tokens: int) -> dict[str, Any]:
    """Medians over the rounds; the losses and steps of the last."""
    seconds = statistics.median(turn.seconds for turn in turns)
    known = [turn.memory for turn in turns if turn.memory is not None]
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(statistics.median(turn.cpu for turn in turns), 3),
        "each": [round(turn.seconds, 3) for turn in turns],
        "steps": len(turns[-1].losses),
        "audio_s_per_s": round(audio / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "memory_mb": round(max(known) / 1e6) if known else None,
        "losses": [round(turns[-1].losses[0], 4), round(turns[-1].losses[-1], 4)],
    }


def table(record: dict) -> str:
    """The record as a document."""
    rows, equal, shape = [], record["equal_lengths"], record["shape"]
    for who in ("ours", "transformers"):
        one = record[who]
        memory = "–" if one["memory_mb"] is None else f"{one['memory_mb']:,}"
        first, last = one["losses"]
        times = f"{one['seconds']:.1f} | {one['cpu_seconds']:.1f}"
        rates = f"{one['tokens_per_s']:,.0f} | {one['audio_s_per_s']:.1f}"
        rows.append(f"| {who} | {times} | {rates} | {one['steps']} | {memory} | {first:.2f} to {last:.2f} |")
    lines, ratios = "\n".join(rows), ", ".join(f"{one:.2f}" for one in record["ratios"])
    done = f"each once; medians of {record['rounds']} rounds in turns"
    return f"""# Training with a text decoder, against transformers' Seq2SeqTrainer

`python -m bench.asr_throughput`: {record["recordings"]} recordings of {SHORTEST:g} to {record["longest"]:g} s
({record["audio_seconds"]:,.0f} s of audio), {record["recordings_per_step"]} a step, {done},
float32, {record["threads"]} threads. Encoder and decoder have {shape["layers"]} layers of {shape["width"]}.

| | seconds | of CPU | tokens/s | audio s per s | steps | MB beyond before | loss |
|---|---|---|---|---|---|---|---|
{lines}

Ours is **{record["ratio"]:.2f} times** as fast (rounds: {ratios}; by CPU seconds {record["ratio_of_cpu"]:.2f}).
transformers' Whisper takes no other length than its `max_source_positions`, set here to the longest
recording: {record["padded"]:.0%} of what it encodes is padding. Its log-mel was made before the clock started; ours
reads, packs and makes log-mel inside the time. Tokens are 25 a second of audio, and text.

On recordings of 30 s, where nothing is padded, the losses of the first {len(equal["ours"])} steps of both trainers
differ by {equal["apart"]:.1e} of their value at most.
"""


if __name__ == "__main__":
    main(__doc__, measure, rounds=5, table=table)
