"""Held-out evaluation of a stage while it trains: loss and scores of records that training never sees."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from afn_distributed import SequenceParallel
from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_distributed.shard import gathered
from afn_model.afnext import AFNext
from afn_model.data.index import Corpus
from afn_model.data.loader import Loader
from afn_model.data.micro_batch import GlobalBatch
from afn_model.data.plan import DataConfig, question
from afn_model.data.records import parse_sample
from afn_model.infer.answer import answers
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.metrics import edits, score, word_f1
from afn_model.scoring.text import answer_in, normalise, words_in
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.eval_settings import EvalSettings, eval_settings
from afn_model.train.held_records import held_out
from afn_model.train.sft import SFT
from afn_model.train.update import with_audio
from afn_model.train.validate import data_config

KEPT = 1 << 30  # bytes of decoded audio that a rank keeps from one evaluation to the next
ANSWERED = 32  # records answered together


class Evaluator:
    """Evaluates a stage's model; it changes neither the model nor any random state.

    Args:
        curriculum, stage: with ``eval``.
        model: as it trains.
        processor: of the model.
        process: this rank.
        sp_group: the ranks that share every sequence with this one, if any.
        sharded: whether weights are cut over ranks.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        stage: Stage,
        model: AFNext,
        processor: AFNextProcessor,
        process: Process,
        sp_group: SequenceParallel | None,
        sharded: bool,
    ):
        settings, found = eval_settings(stage.eval, f"stage {stage.name}: eval"), held_out(curriculum, stage)
        assert settings is not None, "the stage has no eval"
        assert found is not None, "the stage has no eval"
        self.settings: EvalSettings = settings
        self.model, self.processor, self.process, self.sharded = model, processor, process, sharded
        self.sp_size = 1 if sp_group is None else sp_group.size
        own = data_config(curriculum, stage)
        groups = process.world_size // self.sp_size
        # In whole bins of the stage's context, one for each rank; a bad record is reported, and is no reason to end.
        self.config: DataConfig = replace(own, **found, bins=groups, bad_share=1.0, on_long="cut")
        self.method = SFT(model, gather=processes.sum_over, collect=processes.gather_objects, sp_group=sp_group)
        self.kept: list[GlobalBatch] | None = None
        self.told = False
        self.short = copy.copy(processor)
        self.short.max_seconds, self.short.strict = stage.max_audio, False

    def __call__(self) -> dict[str, Any]:
        """Columns of a row: eval_loss over all supervised tokens, eval_losses by axis, eval_<metric>; on all ranks."""
        with undisturbed(self.model), torch.no_grad():
            return self.loss() | (self.scores() if self.settings.metrics else {})

    def loss(self) -> dict[str, Any]:
        totals, samples, bad = torch.zeros(2, dtype=torch.float64), 0, []
        by_axis: dict[str, list[float]] = {}
        for batch in self.batches():
            self.method.detailed = []
            for micro in batch.micro:
                samples += len(micro.samples)
                bad += micro.bad
                micro = with_audio(replace(micro), self.processor) if self.sharded else micro
                self.method.loss(micro, 1.0, True)
            for axis, (value, count) in self.method.by_axis().items():
                entry = by_axis.setdefault(axis, [0.0, 0])
                entry[0] += value
                entry[1] += count
                totals += torch.tensor([value, count], dtype=torch.float64)
        self.method.detailed = []
        value, count = processes.sum_over(totals).tolist()
        samples, unusable = processes.sum_over(torch.tensor([float(samples), float(len(bad))])).tolist()
        if not count:
            raise ValueError(f"no held-out record can be used: {'; '.join(': '.join(one) for one in bad[:3])}")
        if bad and not self.told:
            warnings.warn(f"{len(bad)} held-out records cannot be used: {': '.join(bad[0])}", stacklevel=2)
            self.told = True
        merged: dict[str, list[float]] = {}
        for of_rank in processes.gather_objects(by_axis):
            for axis, (loss, tokens) in of_rank.items():
                entry = merged.setdefault(axis, [0.0, 0])
                entry[0] += loss
                entry[1] += tokens
        losses = {axis: loss / tokens for axis, (loss, tokens) in sorted(merged.items()) if tokens}
        return {
            "eval_loss": value / count,
            "eval_losses": losses,
            "eval_tokens": round(count),
            "eval_samples": round(samples / self.sp_size),
            "eval_bad": round(unusable / self.sp_size),
        }

    def batches(self) -> Iterator[GlobalBatch]:
        """This rank's part of all held-out records, in the same order every time."""
        if self.kept is not None:
            yield from self.kept
            return
        loader = Loader(
            self.config,
            self.processor,
            dp_rank=self.process.rank // self.sp_size,
            dp_size=self.process.world_size // self.sp_size,
        )
        kept, size = [], 0
        for batch in loader:
            micro = batch.micro  # all of them, kept with the batch
            yield batch
            kept.append(batch)
            size += sum(one.batch.pcm.nbytes for one in micro if one.batch is not None and one.batch.pcm is not None)
            if batch.seen >= loader.samples_per_epoch:
                break
        most = float(processes.sum_over(torch.tensor(float(size > KEPT))))
        self.kept = None if most else kept

    def scores(self) -> dict[str, float]:
        """Means over the held-out records with a true answer; error rates over all their words or characters."""
        mine = self.records()[self.process.rank :: self.process.world_size]
        params = SamplingParams(max_new_tokens=self.settings.max_new_tokens)
        told: list[tuple[dict, str]] = []
        wrong: list[ValueError] = []
        with gathered(self.model) if self.sharded else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of recordings that are cut, in every evaluation again
            asked = [question(parse_sample(record, folder).turns) for folder, record in mine]
            for place, found in answers(self.model, self.short, asked, params, batch_size=ANSWERED) if asked else ():
                if isinstance(found, ValueError):
                    wrong.append(found)
                else:
                    told.append((mine[place][1], found.text))
        if wrong and not self.told:
            warnings.warn(f"{len(wrong)} held-out records cannot be answered: {wrong[0]}", stacklevel=2)
            self.told = True
        everyone = [pair for of_rank in processes.gather_objects(told) for pair in of_rank]
        return {f"eval_{name}": scored(name, everyone) for name in self.settings.metrics}

    def records(self) -> list[tuple[str, dict]]:
        """(folder, record) of the held-out records that have an answer to compare with, by number."""
        found = []
        for name, numbers in sorted(self.config.records.items()):
            corpus = Corpus(self.config.datasets[name])
            found += [(corpus.folder, corpus[int(number)]) for number in numbers]
        return [(folder, record) for folder, record in found if reference(record) is not None]


def reference(record: dict) -> str | None:
    """The true answer of a record: its last message where that is the assistant's, or what its truth says."""
    messages = record.get("messages") or record.get("conversations") or [{}]
    last = messages[-1]
    if last.get("role", last.get("from")) in ("assistant", "gpt"):
        content = last.get("content", last.get("value"))
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else None
    found = (record.get("truth") or {}).get("answer")
    return found if isinstance(found, str) else None


def scored(name: str, pairs: Sequence[tuple[dict, str]]) -> float:
    """A metric over records with what was answered; NaN without records.

    wer and cer are edits of all answers ÷ words or characters of all references.
    """
    if not pairs:
        return float("nan")
    if name == "score":
        return fmean(score(record, said) for record, said in pairs)
    texts = [(answer_in(said), answer_in(reference(record) or "")) for record, said in pairs]
    if name == "exact":
        return fmean(float(normalise(said) == normalise(true)) for said, true in texts)
    if name == "f1":
        return fmean(word_f1(said, true) for said, true in texts)
    cut = words_in if name == "wer" else lambda text: "".join(words_in(text))
    return sum(edits(cut(said), cut(true)) for said, true in texts) / max(sum(len(cut(true)) for _, true in texts), 1)


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model evaluates; mode and random states are then what they were."""
    modes = {module: module.training for module in model.modules()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
