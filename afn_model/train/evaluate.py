"""Held-out evaluation of a stage while it trains: loss, rewards and scores of records that training never sees."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch

from afn_distributed import SequenceParallel
from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_distributed.shard import gathered
from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.data.index import Corpus
from afn_model.data.loader import Loader
from afn_model.data.micro_batch import GlobalBatch
from afn_model.data.plan import DataConfig, question
from afn_model.data.records import Sample, parse_sample
from afn_model.infer.answer import answers
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.speech_answer import speech_answers
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.metrics import edits, score, word_f1
from afn_model.scoring.text import answer_in, normalise, words_in
from afn_model.train.codec import CodecTraining
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.dpo import DPO
from afn_model.train.eval_settings import EvalSettings, eval_settings
from afn_model.train.grading import COUNTS, usable_rewards
from afn_model.train.grpo import GRPO, check_rewards
from afn_model.train.held_records import held_out
from afn_model.train.reblend import reblend_settings
from afn_model.train.sft import SFT
from afn_model.train.talker import TalkerTraining
from afn_model.train.update import with_audio
from afn_model.train.validate import data_config

KEPT = 1 << 30  # bytes of decoded audio that a rank keeps from one evaluation to the next
ANSWERED = 32  # records answered together


@dataclass
class Answered:
    """Records, as samples, with what was said of them, and (name, reason) of those that could not be answered."""

    said: list[tuple[dict, Sample, str]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


class Evaluator:
    """Evaluates a stage's model; it changes neither the model nor any random state.

    Args:
        curriculum, stage: with ``eval``.
        model: as it trains.
        processor: of the model.
        process: this rank.
        sp_group: the ranks that share every sequence with this one, if any.
        sharded: whether weights are cut over ranks.
        method: what trains a stage that is not packed.
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
        method: DPO | GRPO | CodecTraining | TalkerTraining | None = None,
    ):
        settings = eval_settings(stage.eval, f"stage {stage.name}: eval", stage.method)
        found = held_out(curriculum, stage)
        assert settings is not None, "the stage has no eval"
        assert found is not None, "the stage has no eval"
        if isinstance(method, GRPO) and stage.eval.get("max_new_tokens") is None:
            settings = replace(settings, max_new_tokens=method.settings.max_new_tokens)
        self.settings: EvalSettings = settings
        self.model, self.processor, self.process, self.sharded = model, processor, process, sharded
        self.sp_size = 1 if sp_group is None else sp_group.size
        own = data_config(curriculum, stage)
        groups = process.world_size // self.sp_size
        # SFT: whole bins of the stage's context, one for each rank. A bad record is reported, and is no reason to end.
        bins = groups if method is None else own.bins
        self.config: DataConfig = replace(
            own, **found, bins=bins, bad_share=1.0, on_long="cut", speeds={}, augment=None
        )
        self.sft = SFT(model, gather=processes.sum_over, collect=processes.gather_objects, sp_group=sp_group)
        self.method = copy.copy(method)  # what is counted here is not counted in training
        self.kept: list[GlobalBatch] | None = None
        self.told = False
        self.short = copy.copy(processor)
        self.short.max_seconds, self.short.strict = self.config.max_seconds, False

    def __call__(self) -> dict[str, Any]:
        """Columns of a row, on all ranks: of SFT ``loss``, of GRPO ``rewards``, else ``measured``; and ``scores``."""
        with undisturbed(self.model), torch.no_grad():
            if isinstance(self.method, GRPO):
                told = self.answered(self.records())
                return self.rewards(told, self.method) | self.scores(told)
            found = self.loss() if self.method is None else self.measured(self.method)
            if self.settings.metrics:
                found |= self.scores(self.answered([one for one in self.records() if reference(one[1]) is not None]))
            return found

    def loss(self) -> dict[str, Any]:
        """eval_loss over all supervised tokens, and eval_losses by axis."""
        totals, samples, bad = torch.zeros(2, dtype=torch.float64), 0, []
        by_axis: dict[str, list[float]] = {}
        for batch in self.batches():
            self.sft.detailed = []
            for micro in batch.micro:
                samples += len(micro.samples)
                bad += micro.bad
                micro = with_audio(replace(micro), self.processor) if self.sharded else micro
                self.sft.loss(micro, 1.0, True)
            for axis, (value, count) in self.sft.by_axis().items():
                entry = by_axis.setdefault(axis, [0.0, 0])
                entry[0] += value
                entry[1] += count
                totals += torch.tensor([value, count], dtype=torch.float64)
        self.sft.detailed = []
        value, count = processes.sum_over(totals).tolist()
        counts = self.counted(samples, bad, usable=count > 0)
        merged: dict[str, list[float]] = {}
        for of_rank in processes.gather_objects(by_axis):
            for axis, (loss, tokens) in of_rank.items():
                entry = merged.setdefault(axis, [0.0, 0])
                entry[0] += loss
                entry[1] += tokens
        losses = {axis: loss / tokens for axis, (loss, tokens) in sorted(merged.items()) if tokens}
        return {"eval_loss": value / count, "eval_losses": losses, "eval_tokens": round(count), **counts}

    def measured(self, method: DPO | CodecTraining | TalkerTraining) -> dict[str, Any]:
        """What a method measures over all pairs, or recordings: of DPO the loss and its columns of the log."""
        sums, samples, bad = torch.zeros(len(method.MEASURED), dtype=torch.float64), 0, []
        for batch in self.batches():
            # What a method finds to be bad it takes out of its batch, which comes again.
            own = [replace(micro, bad=list(micro.bad)) for micro in batch.micro]
            batch = GlobalBatch(own, batch.position, batch.seen)
            sums += method.measure(batch).double().cpu()
            samples, bad = samples + sum(len(micro.samples) for micro in own), bad + batch.bad
        sums = processes.sum_over(sums)
        counts = self.counted(samples, bad, usable=bool(sums[0]))
        return {f"eval_{name}": value for name, value in method.means(sums).items()} | counts

    def rewards(self, told: Answered, method: GRPO) -> dict[str, Any]:
        """eval_reward, the mean reward of greedy answers, and eval_rewards by kind."""
        bad, samples, texts = list(told.bad), [], []
        for record, sample, text in told.said:
            check_rewards(sample)
            try:
                usable_rewards(sample, method.settings)
            except ValueError as error:
                bad.append((str(record.get("id", "?")), str(error)))
                continue
            samples.append(sample)
            texts.append([text])
        graded = method.grader.grade_texts(samples, texts)
        if method.grader.asks_others:
            asked = torch.tensor([float(method.grader.counts[name]) for name in COUNTS])
            method.grader.require(processes.sum_over(asked).tolist())
        bad += [(sample.id, "no reward") for sample, found in zip(samples, graded, strict=True) if not found.totals]
        found = [(one.totals[0], one.by_kind[0]) for one in graded if one.totals]
        everyone = [one for of_rank in processes.gather_objects(found) for one in of_rank]
        counts = self.counted(len(found), bad, usable=bool(everyone))
        kinds = sorted({kind for _, by_kind in everyone for kind in by_kind})
        by_kind = {kind: fmean(each[kind] for _, each in everyone if kind in each) for kind in kinds}
        return {"eval_reward": fmean(total for total, _ in everyone), "eval_rewards": by_kind, **counts}

    def counted(self, samples: float, bad: list[tuple[str, str]], *, usable: bool) -> dict[str, int]:
        """Columns of how many records were used and could not be, over all ranks; warns of bad ones once.

        Raises:
            ValueError: no record of any rank is ``usable``.
        """
        samples, unusable = processes.sum_over(torch.tensor([float(samples), float(len(bad))])).tolist()
        if not usable:
            raise ValueError(f"no held-out record can be used: {'; '.join(': '.join(one) for one in bad[:3])}")
        self.warn(bad, "used")
        return {"eval_samples": round(samples / self.sp_size), "eval_bad": round(unusable / self.sp_size)}

    def warn(self, bad: list[tuple[str, str]], what: str) -> None:
        """Says once which records are bad."""
        if bad and not self.told:
            warnings.warn(f"{len(bad)} held-out records cannot be {what}: {', '.join(bad[0])}", stacklevel=3)
            self.told = True

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
            size += sum(clip.nbytes for one in micro for prepared in one.prepared or () for clip in prepared.clips)
            if batch.seen >= loader.samples_per_epoch:
                break
        most = float(processes.sum_over(torch.tensor(float(size > KEPT))))
        self.kept = None if most else kept

    def answered(self, records: list[tuple[str, dict]]) -> Answered:
        """Greedy answers to this rank's share of the records."""
        params, found = SamplingParams(max_new_tokens=self.settings.max_new_tokens), Answered()
        mine, asked = [], []
        for folder, record in records[self.process.rank :: self.process.world_size]:
            try:
                sample = parse_sample(record, folder)
                asked.append(question(sample.turns))
                mine.append((record, sample))
            except ValueError as error:
                found.bad.append((str(record.get("id", "?")), str(error)))
        with gathered(self.model) if self.sharded else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of recordings that are cut, in every evaluation again
            said = speech_answers if isinstance(self.model, AFWhisper) else answers
            for place, one in said(self.model, self.short, asked, params, batch_size=ANSWERED) if asked else ():
                if isinstance(one, ValueError):
                    found.bad.append((mine[place][1].id, str(one)))
                else:
                    found.said.append((*mine[place], one.text))
        return found

    def scores(self, told: Answered) -> dict[str, float]:
        """eval_<metric>: means over the held-out records with a true answer; error rates over all their words or
        characters."""
        if not self.settings.metrics:
            return {}
        self.warn(told.bad, "answered")
        own = [(record, text) for record, _, text in told.said if reference(record) is not None]
        everyone = [pair for of_rank in processes.gather_objects(own) for pair in of_rank]
        return {f"eval_{name}": scored(name, everyone) for name in self.settings.metrics}

    def records(self) -> list[tuple[str, dict]]:
        """(folder, record) of the held-out records, by number."""
        found = []
        for name, numbers in sorted(self.config.records.items()):
            corpus = Corpus(self.config.datasets[name])
            found += [(corpus.folder, corpus[int(number)]) for number in numbers]
        return found


class HeldLosses:
    """Losses of the held-out sets that a stage's blend follows.

    Args:
        curriculum, stage: with ``reblend``.
        given: what ``Evaluator`` takes after them.
    """

    def __init__(self, curriculum: Curriculum, stage: Stage, *given: Any):
        settings = reblend_settings(stage.reblend, f"stage {stage.name}: reblend", stage.blend)
        assert settings is not None, "the stage has no reblend"
        self.settings, self.what = settings, f"{stage.name}: reblend"
        self.evaluators = {
            name: Evaluator(
                curriculum, replace(stage, eval={"data": file, "samples": settings.samples}, reblend={}), *given
            )
            for name, file in sorted(settings.held.items())
        }

    def __call__(self) -> dict[str, float]:
        """Mean loss over the supervised tokens of each dataset's held-out set, the same on all ranks.

        Raises:
            ValueError: a set of which nothing can be used, a loss that is no number.
        """
        found = {}
        for name, evaluator in self.evaluators.items():
            try:
                found[name] = evaluator()["eval_loss"]
            except ValueError as error:
                raise ValueError(f"{self.what}: {name}: {error}") from None
        found = processes.gather_objects(found)[0]
        for name, loss in found.items():
            if not math.isfinite(loss):
                raise ValueError(f"{self.what}: the held-out loss of dataset {name} is {loss}")
        return found


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
