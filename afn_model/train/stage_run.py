"""One stage on one rank: its steps, its checkpoints, its log, and the model it leaves."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from afn_distributed import SequenceParallel
from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_distributed.shard import export_model
from afn_model.data.loader import BadTally, GlobalBatch, Loader, MicroBatch, Position
from afn_model.files import remove_leftovers, write_json
from afn_model.prompt.processor import AFNextProcessor
from afn_model.speech.config import voice_json
from afn_model.train import fingerprint, lora
from afn_model.train.adapt import load_base, with_adapters
from afn_model.train.callbacks import Callback, Reporters, TensorBoard
from afn_model.train.checkpoint import Checkpoints, find, training_state
from afn_model.train.curriculum import Curriculum, Stage, write_curriculum
from afn_model.train.evaluate import Evaluator, HeldLosses
from afn_model.train.flops import WORK, step_work
from afn_model.train.grpo import GRPO
from afn_model.train.held_records import held_fingerprint
from afn_model.train.log import Meter, RunLog, named
from afn_model.train.method_of import method_of, method_settings, needs_reference
from afn_model.train.methods import METHODS, VOICE, check_kind
from afn_model.train.optimiser import FiniteCheck, learning_rate
from afn_model.train.outlook import check_room
from afn_model.train.prepare import DONE, agreed, announce, cores, together, warn
from afn_model.train.profiler import profile_window, snapshot_on_oom
from afn_model.train.resume import Progress, resume, start_with_weights
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_model import stage_model
from afn_model.train.stopping import Stopped, stop_signals
from afn_model.train.update import collected_together, update, with_audio
from afn_model.train.validate import MODEL, data_config, start_folder
from afn_model.train.voice_model import export_voice, voice_stage_model
from afn_model.train.voice_reader import VoiceReader
from afn_model.weights.speech import config_as_json


@dataclass(frozen=True)
class Options:
    """Settings that do not change the result.

    Args:
        show: log lines and a progress bar on the screen.
        tensorboard: scalars for TensorBoard, where it is installed.
        callbacks: told of every stage's start, rows, evaluations and end, on rank 0.
        profile: first and last step of a profiler's window in every stage.
        on_row: called on rank 0 with every row of the log.
        strict: what would be a warning before the first step is an error.
    """

    show: bool = True
    tensorboard: bool = True
    callbacks: tuple[Callback, ...] = ()
    strict: bool = False
    profile: tuple[int, int] | None = None
    on_row: Callable[[dict[str, Any]], None] | None = None


class StageRun:
    """One stage on one rank."""

    def __init__(
        self,
        curriculum: Curriculum,
        stage: Stage,
        base: Path,
        out: Path,
        layout: RunLayout,
        process: Process,
        options: Options,
        *,
        allow_changes: Collection[str] = (),
        init_from: Path | None = None,
    ):
        self.curriculum, self.stage, self.options = curriculum, stage, options
        self.layout, self.process = layout, process
        self.sp_size = sp_size(layout, stage)
        self.sp_group = SequenceParallel.of(process, layout.ulysses, layout.ring) if self.sp_size > 1 else None
        self.folder = out / stage.name
        self.folder.mkdir(parents=True, exist_ok=True)
        if process.rank == 0:  # a run that is killed while it writes a model leaves as much as the model takes
            remove_leftovers(self.folder)
        start = start_folder(stage, base, out)
        self.is_voice = METHODS[stage.method].model == VOICE
        self.processor = self.make_processor(start)
        self.done = Progress()
        self.loader = self.make_loader(Position())
        self.samples_per_epoch = self.loader.samples_per_epoch  # of the stage's own blend
        self.start_folder = start
        known = out / "fingerprints.json"
        self.start = agreed(process, lambda: fingerprint.start_fingerprint(start, stage.adapter, known))
        self.settings = method_settings(stage)
        model, weights = together(process, lambda: load_base(start, stage, process.device))
        given: Any = model, stage, layout, process
        if self.is_voice:
            self.stage_model = voice_stage_model(*given, settings=self.settings, seed=curriculum.seed)
        else:
            asks = needs_reference(self.settings)
            self.stage_model = stage_model(*given, reference=asks, seed=curriculum.seed, weights=weights)
        self.model = self.stage_model.model
        self.method = self.make_method()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=layout.keep, pin=process.device.type == "cuda")
        self.finite = FiniteCheck(stage.name)
        self.allow_changes, self.init_from = allow_changes, init_from
        self.saved = -1  # step of the newest checkpoint
        self.left_out = [0.0, 0.0]  # recordings cut and samples dropped since the last row
        self.log: RunLog | None = None
        own = [TensorBoard(options.show)] if options.tensorboard else []
        self.report = Reporters((*own, *options.callbacks) if process.rank == 0 else ())
        self.evaluator = self.make_evaluator() if stage.eval else None
        self.held = HeldLosses(curriculum, stage, *self.evaluated) if stage.reblend else None
        self.held_fingerprint = held_fingerprint(curriculum, stage)
        self.stale = False  # whether patience has run out
        self.model_folder: Path | None = None

    def make_processor(self, start: Path) -> AFNextProcessor:
        if self.is_voice:
            check_kind(start, self.stage.name, self.stage.method)
            return VoiceReader.of_stage(start, self.stage)
        return AFNextProcessor.from_pretrained(start, pcm_dtype=torch.int16, whole_windows=False)

    def make_loader(self, position: Position) -> Loader:
        config = data_config(self.curriculum, self.stage)
        if position.change:
            config = config.reblended(self.done.changes[position.change - 1]["after"], position.change)
        return Loader(
            config,
            self.processor,
            dp_rank=self.process.rank // self.sp_size,
            dp_size=self.process.world_size // self.sp_size,
            workers=min(self.layout.workers, cores()),
            position=position,
            pin=self.process.device.type == "cuda",
            group=None if self.sp_group is None else self.sp_group.all,
        )

    def make_method(self) -> Any:
        given: Any = self.stage, self.settings, self.stage_model, self.processor, self.process
        return method_of(*given, seed=self.curriculum.seed, sp_group=self.sp_group)

    def make_evaluator(self) -> Evaluator:
        method = None if self.stage.packed else self.method
        return Evaluator(self.curriculum, self.stage, *self.evaluated, method=method)

    @property
    def evaluated(self) -> tuple[Any, ...]:
        return self.model, self.processor, self.process, self.sp_group, self.stage_model.sharded

    def config_as_json(self) -> dict[str, Any]:
        """What config.json holds of the model; lists for tuples, as a checkpoint's facts have them."""
        if self.is_voice:
            return json.loads(json.dumps(voice_json(self.model.config)))
        return config_as_json(self.model.config, self.layout.dtype)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        return {
            "stage": fingerprint.as_json(self.stage),
            "model": {**self.config_as_json(), **({"fp8": True} if self.layout.fp8 else {})},
            "start": self.start,
            "data": self.loader.fingerprint | self.held_fingerprint,
            "seed": self.curriculum.seed,
            "code": fingerprint.code_fingerprint(),
            "world": self.process.world_size,
            **self.done.facts(),
        }

    def resume(self) -> None:
        """Resumes from the newest complete checkpoint, where there is one."""
        latest = self.checkpoints.latest()
        if latest is not None:
            self.done, notes = resume(
                self.checkpoints, latest, self.stage, self.facts(), self.stage_model, self.allow_changes
            )
            self.saved = self.done.step
            self.loader = self.make_loader(self.done.position)
            rate = learning_rate(self.stage.lr, self.stage.warmup, self.stage.schedule, self.progress())
            notes.append(
                f"of all there is to do {self.progress():.0%} is done, for which the learning rate is {rate:.3g}"
            )
            self.say("; ".join(notes))
        elif (other := self.init_from) is not None:
            found = agreed(self.process, lambda: find(other))
            notes = start_with_weights(self.checkpoints, found, self.stage_model, self.stage, self.start)
            self.say("; ".join(notes))

    def say(self, text: str) -> None:
        announce(f"{self.stage.name}: {text}", self.options.show and self.process.rank == 0)

    def progress(self) -> float:
        """Share of the stage that is done, 0 to 1; all of it where patience has run out."""
        return 1.0 if self.stale else self.done.share(self.stage, self.samples_per_epoch)

    def run(self) -> None:
        self.resume()
        stage, process, done = self.stage, self.process, self.done
        models = 1 + len(self.curriculum.milestones(stage.name))

        def look_for_room() -> None:
            found = check_room(self.folder, self.model, self.layout, models, stage.optimiser)
            warn(stage.name, found, strict=self.options.strict)

        agreed(process, look_for_room)
        if process.rank == 0:
            (self.folder / DONE).unlink(missing_ok=True)
            write_curriculum(self.curriculum, self.folder.parent / "curriculum.yaml")
            self.log = RunLog(
                self.folder.parent,
                stage=stage.name,
                show=self.options.show,
                from_step=done.step,
            )
            about = {"run": str(self.folder.parent), "stage": stage.name, "folder": str(self.folder)}
            about |= {"from_step": done.step, "settings": fingerprint.as_json(stage), "layout": asdict(self.layout)}
            self.report("on_start", about | {"model": self.config_as_json()})
        meter = Meter(device=process.device)
        began, saved = time.perf_counter() - done.seconds, time.perf_counter()
        bad = BadTally(self.loader.config.bad_share, self.loader.blend.records)
        profiler = contextlib.nullcontext()
        if self.options.profile and process.rank == 0:
            profiler = profile_window(self.folder / "profile", *self.options.profile)
        with (
            stop_signals(say=process.rank == 0) as asked,
            snapshot_on_oom(self.folder),
            profiler as window,
            collected_together() as collect,
        ):
            self.reblend()  # what a signal has left undone
            global_batches = iter(self.loader)
            self.evaluate()  # that too
            while self.progress() < 1:
                self.export_milestones()
                rate = learning_rate(stage.lr, stage.warmup, stage.schedule, self.progress())
                detailed = done.step % self.layout.log_every == 0 or done.step + 1 == stage.steps
                tick = time.perf_counter()
                global_batch = next(global_batches)
                global_batch.following = global_batches
                global_batch.step, global_batch.progress = done.step, self.progress()
                wait, work = time.perf_counter() - tick, Counter(dict.fromkeys(WORK, 0.0))
                global_batch.through(partial(self.count, work))
                if self.stage_model.sharded:
                    global_batch.through(partial(with_audio, processor=self.processor))
                losses = update(
                    self.stage_model,
                    self.method,
                    global_batch,
                    rate=rate,
                    clip=stage.clip,
                    finite=self.finite,
                    step=done.step,
                    detailed=detailed,
                )
                collect(done.step + 1)
                minutes = (time.perf_counter() - saved) / 60
                due = (done.step + 1) % self.layout.checkpoint_every == 0 or minutes >= self.layout.checkpoint_minutes
                totals = self.totals(work, global_batch, bool(asked), due, time.perf_counter() - began)
                done.step, done.position = done.step + 1, global_batch.position
                done.seen = done.seen_before + global_batch.seen
                done.seconds = totals["seconds"]
                meter.step(**totals["work"], wait_s=wait + global_batch.wait, step_s=time.perf_counter() - tick)
                self.note_bad(global_batch)
                if not stage.packed:  # these read audio themselves, after the loader has counted bad samples
                    bad.add(global_batch.read, global_batch.ends_chunk)
                if self.log and detailed:
                    self.write(rate, losses | meter.row())
                if window:
                    window.step()
                if totals["failed"]:
                    self.checkpoints.wait()  # raises
                if not totals["stop"] and self.reblend():
                    global_batches.close()
                    global_batches = iter(self.loader)
                better = not totals["stop"] and self.evaluate()
                if totals["stop"] or totals["due"] or better:
                    self.save(wait=totals["stop"])
                    saved = time.perf_counter()
                if totals["stop"] and self.progress() < 1:
                    raise Stopped(f"{stage.name}: stopped after step {done.step}; its checkpoint is written")
            self.reblend()  # where a signal came with the last step
            self.evaluate()
            self.export_milestones()
            self.finish()
            if float(processes.sum_over(torch.tensor(float(bool(asked))))):
                raise Stopped(f"{stage.name}: stopped after its last step")

    def evaluate(self) -> bool:
        """A held-out evaluation where one is due; whether its checkpoint is to be kept as the best so far."""
        done, evaluator = self.done, self.evaluator
        if evaluator is None:
            return False
        settings = evaluator.settings
        self.stale = settings.patience is not None and done.since_best >= settings.patience
        if done.evaluated == done.step or (done.step % settings.every and self.progress() < 1):
            return False
        began = time.perf_counter()
        columns = evaluator()
        value = columns[f"eval_{settings.best}"]
        better = settings.better(value, done.best_value)
        done.evaluated, done.since_best = done.step, 0 if better else done.since_best + 1
        if better:
            done.best_step, done.best_value = done.step, value
        self.stale = settings.patience is not None and done.since_best >= settings.patience
        if self.log:
            row = {"step": done.step - 1, "progress": self.progress(), "seconds": done.seconds, **columns}
            row |= {"eval_seconds": time.perf_counter() - began, "best_step": max(done.best_step - 1, 0)}
            self.report("on_eval", self.log(row))
        if self.stale:
            self.say(f"ends: no better {settings.best} in {done.since_best} evaluations")
        return better and settings.keep_best

    def reblend(self) -> bool:
        """Measures held-out losses where that is due, and changes the blend by them.

        Returns:
            Whether it has changed: ``loader`` is then another one, whose stream begins with its first sample.
        """
        done, held, last = self.done, self.held, self.progress() >= 1
        measured = bool(done.blends) and done.blends[-1]["step"] == done.step
        if held is None or measured or not held.settings.due(done.step, last):
            return False
        began, losses, now = time.perf_counter(), held(), self.loader.config.blend
        records = {source.name: source.records for source in self.loader.blend.order.sources}
        before = done.blends[-1]["losses"] if done.blends else None
        after = now if last else held.settings.blend(self.stage.blend, now, records, losses, before)
        done.blends.append({"step": done.step, "seen": done.seen, "losses": losses, "before": now, "after": after})
        if self.log:
            row = {"step": max(done.step - 1, 0), "progress": self.progress(), "seconds": done.seconds}
            row |= {"eval_held": losses, "blend_before": now, "blend": after}
            self.report("on_eval", self.log(row | {"eval_seconds": time.perf_counter() - began}))
        if after == now:
            return False
        self.checkpoints.wait()  # the new loader's workers are forked, and no thread of ours should run then
        done.position = Position(change=len(done.changes))
        self.loader = self.make_loader(done.position)
        return True

    def close(self) -> None:
        """Ends what runs beside the training; an error of the pending checkpoint must not hide why the run ends."""
        with contextlib.suppress(OSError):
            self.checkpoints.wait()
        if self.log:
            self.log.close()
        self.report("on_end", self.model_folder)
        if isinstance(self.method, GRPO):
            self.method.close()

    def release(self) -> None:
        """Destroys the stage's process groups; not where it has failed, since that may wait for a rank that is gone."""
        self.checkpoints.close()
        if self.sp_group:
            self.sp_group.close()

    def export_milestones(self) -> None:
        """Writes the model at the points of this stage from which later stages start."""
        for at in self.curriculum.milestones(self.stage.name):
            if self.progress() >= at and at not in self.done.exported:
                self.save_before_export()
                self.export(f"{MODEL}-at-{at:g}")
                self.done.exported.append(at)

    def save(self, *, wait: bool) -> None:
        self.finite.flush()
        tensors = training_state(self.model, self.stage_model.optimiser)
        self.checkpoints.save(self.done.step, tensors, self.facts(), wait=wait, spare=self.best)
        self.saved = self.done.step

    @property
    def best(self) -> int | None:
        """Steps done at the best evaluation, whose checkpoint is kept; None where none is."""
        keep_best = self.evaluator is not None and self.evaluator.settings.keep_best
        return self.done.best_step if keep_best and self.done.best_step >= 0 else None

    def save_before_export(self) -> None:
        """Nothing is lost where the disk has no room for a model."""
        if self.saved == self.done.step:
            self.checkpoints.wait()
        else:
            self.save(wait=True)

    def write(self, rate: float, columns: dict[str, Any]) -> None:
        assert self.log is not None
        row = {
            "stage": self.stage.name,
            "step": self.done.step - 1,
            "progress": self.progress(),
            "seconds": self.done.seconds,
        }
        row |= self.rates(rate) | columns | dict(zip(("cut", "dropped"), map(int, self.left_out), strict=True))
        self.left_out = [0.0, 0.0]
        self.report("on_row", self.log(row))
        self.log.answers(self.done.step - 1, getattr(self.method, "answers", ()))
        if self.options.on_row:
            self.options.on_row(row)

    def rates(self, rate: float) -> dict[str, Any]:
        """The stage's rate, and those of the parts that have their own."""
        own = {part: rate * peak / self.stage.lr for part, peak in self.stage.rates.items()}
        return {"lr": rate, "lrs": own} if own else {"lr": rate}

    def note_bad(self, global_batch: GlobalBatch) -> None:
        """Of the ranks that share the same samples, the first writes down those it could not use."""
        bad = global_batch.bad
        if bad and self.process.rank % self.sp_size == 0:
            path = self.folder / "bad.jsonl"
            with named(path), path.open("a", encoding="utf-8") as file:
                for name, reason in bad:
                    file.write(json.dumps({"step": self.done.step - 1, "name": name, "reason": reason}) + "\n")

    def count(self, work: Counter[str], micro: MicroBatch) -> MicroBatch:
        """Adds tokens, audio seconds and FLOPs of a micro-batch; a rank's share where ranks share it."""
        if micro.batch is not None:
            found = step_work(self.model.config, [micro.batch], self.stage_model.adapted.trains)
            work.update({name: amount / self.sp_size for name, amount in found.items()})
        return micro

    def totals(self, work: Counter[str], batch: GlobalBatch, stop: bool, due: bool, seconds: float) -> dict[str, Any]:
        """What all ranks must agree on after a step: summed work, rank 0's clock, whether to stop or save."""
        for name, amount in self.method.work().items():
            work[name] += amount  # pyright: ignore[reportArgumentType]
        clock = seconds if self.process.rank == 0 else 0.0
        first = self.process.rank % self.sp_size == 0  # of the ranks that share the same samples
        left_out = [float(count * first) for count in (batch.cut, batch.dropped)]
        flags = [float(stop), float(due), float(self.checkpoints.failed())]
        numbers = torch.tensor([*work.values(), *left_out, *flags, clock], dtype=torch.float64)
        *sums, cut, dropped, stops, dues, failed, clock = processes.sum_over(numbers).tolist()
        self.left_out = [self.left_out[0] + cut, self.left_out[1] + dropped]
        found = {"stop": stops > 0, "due": dues > 0, "failed": failed > 0, "seconds": clock}
        return {"work": dict(zip(work, sums, strict=True)), **found}

    def export(self, name: str) -> None:
        """Writes the model as it stands to a folder of the stage."""
        if self.is_voice:
            export_voice(self.model, self.folder / name)
        else:
            export_model(self.model, self.folder / name, getattr(torch, self.layout.dtype))
        if self.process.rank == 0:
            self.processor.save_pretrained(self.folder / name)
        processes.barrier()

    def finish(self) -> None:
        """Writes the finished model, and then done.json, which marks the stage as finished."""
        self.save_before_export()
        self.take_best()
        if with_adapters(self.stage):
            saved = self.stage_model.adapted.saved
            lora.save(self.model, self.folder / "adapter", saved=saved, base=str(self.start_folder))
        self.export(MODEL)
        if self.process.rank == 0:
            write_json(self.folder / DONE, {**self.facts(), "release_name": self.stage.release_name})
        self.model_folder = self.folder / MODEL
        self.checkpoints.prune(self.layout.keep_finished, self.best)

    def take_best(self) -> None:
        """Takes the weights of the best evaluation's checkpoint, where they become the stage's model."""
        if self.best in (None, self.done.step):
            return
        path = self.checkpoints.at(self.best)
        try:
            self.checkpoints.load_weights(path, self.model)
            self.say(f"its model is that of step {self.done.best_step - 1}, the best one")
        except ValueError as error:
            warnings.warn(f"{self.stage.name}: its model is the last one, not the best: {error}", stacklevel=2)


def sp_size(layout: RunLayout, stage: Stage) -> int:
    """Ranks that share each sequence in a stage."""
    return layout.ulysses * layout.ring if stage.packed else 1
