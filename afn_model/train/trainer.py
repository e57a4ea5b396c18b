"""The trainer: runs a curriculum stage by stage, and resumes a stage from its last checkpoint."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afn_distributed import SequenceParallel
from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_distributed.roll_call import RankEnded, roll_call
from afn_distributed.shard import clip_grad_norm, export_model, gathered, set_sync, shard
from afn_model.afnext import AFNext
from afn_model.data.loader import BadTally, GlobalBatch, Loader, Position
from afn_model.files import remove_leftovers, write_json
from afn_model.prompt.batch import IGNORED, join
from afn_model.prompt.conversation import SILENCE
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train import fingerprint, lora
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.checkpoint import Checkpoints, find, restore, training_state
from afn_model.train.curriculum import Curriculum, RunLayout, Stage, for_stage, write_curriculum
from afn_model.train.feature_cache import FeatureCache
from afn_model.train.flops import step_work
from afn_model.train.grpo import GRPO, GRPOSettings, frozen_reference
from afn_model.train.lock import locked
from afn_model.train.log import Meter, RunLog, named
from afn_model.train.optimiser import FiniteCheck, learning_rate, make_optimiser
from afn_model.train.outlook import check_room
from afn_model.train.prepare import DONE, agreed, announce, cores, finished_stages, prepare, warn
from afn_model.train.profiler import profile_window, snapshot_on_oom
from afn_model.train.sft import SFT, select
from afn_model.train.stopping import Stopped, stop_signals
from afn_model.train.validate import MODEL, check, data_config, start_folder
from afn_model.weights.config_json import to_json

# Methods of the model besides forward that compute with its weights.
FORWARDS = ("loss", "logits", "answer_logprobs", "hidden", "embed_batch", "encode", "encode_batch", "project")


@dataclass(frozen=True)
class Options:
    """Settings that do not change the result.

    Args:
        show: log lines and a progress bar on the screen.
        tensorboard: scalars for TensorBoard, where it is installed.
        profile: first and last step of a profiler's window in every stage.
        on_row: called on rank 0 with every row of the log.
        strict: what would be a warning before the first step is an error.
    """

    show: bool = True
    tensorboard: bool = True
    strict: bool = False
    profile: tuple[int, int] | None = None
    on_row: Callable[[dict[str, Any]], None] | None = None


def train(
    curriculum: Curriculum,
    base: str | Path,
    out: str | Path,
    *,
    layout: RunLayout | None = None,
    process: Process | None = None,
    only: str | None = None,
    options: Options | None = None,
    on_stage: Callable[[Stage, Path], None] | None = None,
    allow_changes: Collection[str] = (),
    init_from: str | Path | None = None,
    dry_run: bool = False,
) -> None:
    """Runs a curriculum, or one stage of it, from where the run folder stands.

    Args:
        curriculum: what to learn, in which order.
        base: model folder with its tokenizer, any layout.
        out: run folder; finished stages in it are skipped, an unfinished one resumes from its last checkpoint.
        layout: the parallelism layout, with precision and checkpoint intervals; the default is one CPU process.
        process: this rank; found from torchrun's environment if None.
        only: a stage to run alone; what it starts from must be there.
        options: what is shown and measured.
        on_stage: called on rank 0 after every stage, those finished earlier included, with its model folder.
        allow_changes: settings that may differ from those of a checkpoint or a finished stage, which then goes on.
        init_from: a checkpoint of another run, whose trained weights the first of the stages starts with.
        dry_run: only say what the stages would do; nothing is written.

    Raises:
        ValueError: one line: what is missing, has changed since the checkpoint, or went wrong, and where.
        Refused: the same on the other ranks where rank 0 has raised it.
        Stopped: a signal ended the run, after its checkpoint.
    """
    out, layout, options = Path(out), layout or RunLayout(), options or Options()
    stages = curriculum.stages if only is None else (curriculum[only],)
    own = process is None
    sharded = any(for_stage(layout, stage).dtype != "float32" for stage in stages)
    process = process or processes.start(group=sharded)
    try:
        with roll_call(process), contextlib.ExitStack() as held:
            for stage in stages:
                check(curriculum, stage, process.world_size, sp_size(for_stage(layout, stage), stage))

            def begin() -> set[str]:
                if not dry_run:
                    held.enter_context(locked(out))
                done = finished_stages(stages, out, allow_changes, curriculum)
                todo = [stage for stage in stages if stage.name not in done]
                for name in sorted(done):
                    announce(f"{name}: done before", options.show)
                prepare(curriculum, todo, Path(base), show=options.show, strict=options.strict)
                return done

            done = agreed(process, begin)
            for stage in () if dry_run else stages:
                if stage.name not in done:
                    run = _StageRun(curriculum, stage, Path(base), out, for_stage(layout, stage), process, options)
                    run.allow_changes = allow_changes
                    run.init_from = Path(init_from) if init_from and stage is stages[0] else None
                    with contextlib.closing(run):
                        run.run()
                    processes.barrier()
                if on_stage and process.rank == 0:
                    on_stage(stage, out / stage.name / MODEL)
                processes.barrier()
    except RankEnded as error:
        raise ValueError(str(error)) from None
    finally:
        if own:
            processes.stop()


class _StageRun:
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
        self.processor = AFNextProcessor.from_pretrained(start, pcm_dtype=torch.int16)
        self.loader = self.make_loader(Position())
        self.start = agreed(process, lambda: fingerprint.weights_fingerprint(start))
        self.trains = stage.modules
        if stage.lora:
            self.trains = (*(name for name in stage.modules if name not in ("language_model", "lm_head")), "lora")
        self.model = AFNext.from_pretrained(start, device=process.device)
        self.prepare_model()
        self.optimiser = make_optimiser(
            [(n, p) for n, p in self.model.named_parameters() if p.requires_grad],
            lr=stage.lr,
            betas=stage.betas,
            weight_decay=stage.weight_decay,
        )
        self.method = self.make_method()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=layout.keep)
        self.finite = FiniteCheck(stage.name)
        self.allow_changes: Collection[str] = ()
        self.init_from: Path | None = None
        self.saved = -1  # step of the newest checkpoint
        self.left_out = [0.0, 0.0]  # recordings cut and samples dropped since the last row
        self.step, self.seen, self.seconds, self.position = 0, 0.0, 0.0, Position()
        self.exported: list[float] = []
        self.log: RunLog | None = None

    def make_loader(self, position: Position) -> Loader:
        return Loader(
            data_config(self.curriculum, self.stage),
            self.processor,
            dp_rank=self.process.rank // self.sp_size,
            dp_size=self.process.world_size // self.sp_size,
            workers=min(self.layout.workers, cores()),
            position=position,
        )

    def prepare_model(self) -> None:
        """Freezes, casts, adapts and shards."""
        stage, model, layout = self.stage, self.model, self.layout
        compute = getattr(torch, layout.dtype)
        if stage.lora:
            select(model, self.trains[:-1])
            lora.add(model, **stage.lora)
        else:
            select(model, stage.modules)
        model.train()
        self.reference = None
        if stage.method == "grpo":
            self.settings = GRPOSettings(**{"max_seconds": stage.max_audio, **stage.grpo})
            self.reference = frozen_reference(model, compute) if self.settings.kl else None
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute)
        blocks = [*model.language_model.layers, *model.encoder.layers]
        checkpoint_blocks(model, layout.recompute)
        if layout.compile:
            for block in blocks:
                block.compile(dynamic=True)
        self.sharded = self.process.world_size > 1 or compute != torch.float32
        if self.sharded:
            shard(
                model,
                self.process,
                blocks=blocks,
                compute_dtype=compute,
                shard_size=layout.shard or None,
                forwards=FORWARDS,
            )

    def make_method(self) -> Any:
        gather = processes.sum_over
        if self.stage.method == "sft":
            features = FeatureCache(self.model) if self.stage.cache_encoder else None
            collect = processes.gather_objects
            return SFT(self.model, gather=gather, collect=collect, features=features, sp_group=self.sp_group)
        return GRPO(
            self.model,
            self.processor,
            self.settings,
            self.reference,
            seed=self.curriculum.seed,
            gather=gather,
            gathered=gathered if self.sharded else None,
        )

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors; a run resumes only if the first five are unchanged."""
        return {
            "stage": fingerprint.as_json(self.stage),
            "model": to_json(self.model.config, self.layout.dtype),
            "start": self.start,
            "data": self.loader.fingerprint,
            "seed": self.curriculum.seed,
            "code": fingerprint.code_fingerprint(),
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
            "position": [self.position.chunk, self.position.step],
            "exported": self.exported,
            "world": self.process.world_size,
        }

    def resume(self) -> None:
        """Resumes from the newest complete checkpoint, where there is one."""
        latest = self.checkpoints.latest()
        if latest is None:
            if self.init_from:
                self.start_with_weights()
            return
        saved, now = self.checkpoints.facts(latest), self.facts()
        if wrong := fingerprint.not_allowed(saved["stage"], self.stage, self.allow_changes):
            raise ValueError(f"{latest}: the settings changed since: {wrong}")
        names = {"model": "config", "start": "model it started from", "data": "datasets", "seed": "seed"}
        for key, what in names.items():
            if wrong := fingerprint.difference(saved.get(key), now[key]):
                raise ValueError(f"{latest}: the {what} changed since: {wrong}")
        tensors = training_state(self.model, self.optimiser)
        self.checkpoints.load(latest, tensors)
        restore(self.model, self.optimiser, tensors)
        self.step, self.seen, self.seconds = saved["step"], saved["seen"], saved["seconds"]
        self.position, self.exported = Position(*saved["position"]), saved["exported"]
        self.saved = self.step
        self.loader = self.make_loader(self.position)
        notes = [f"goes on from step {self.step} ({latest.name})"]
        notes.append(fingerprint.said(fingerprint.changed(saved["stage"], self.stage)))
        notes.append("" if saved["code"] == now["code"] else "the code has changed since")
        self.say("; ".join(filter(None, notes)))

    def start_with_weights(self) -> None:
        """Takes the trained weights of another run's checkpoint."""
        path = agreed(self.process, lambda: find(self.init_from))
        trained = {name for name, _ in self.model.named_parameters()}
        facts = self.checkpoints.facts(path)
        read = self.checkpoints.load_weights(path, self.model)
        if not trained <= read and facts["start"] != self.start:
            left = len(trained - read)
            raise ValueError(f"{path}: was trained from another model, and has not the {left} weights that were frozen")
        self.say(f"starts with the weights of {path}")

    def say(self, text: str) -> None:
        announce(f"{self.stage.name}: {text}", self.options.show and self.process.rank == 0)

    def progress(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        shares = [self.seen / (self.stage.epochs * self.loader.samples_per_epoch)]
        if self.stage.steps:
            shares.append(self.step / self.stage.steps)
        if self.stage.minutes:
            shares.append(self.seconds / 60 / self.stage.minutes)
        return min(max(shares), 1.0)

    def run(self) -> None:
        self.resume()
        stage, process = self.stage, self.process
        models = 1 + len(self.curriculum.milestones(stage.name))

        def look_for_room() -> None:
            warn(stage.name, check_room(self.folder, self.model, self.layout, models), strict=self.options.strict)

        agreed(process, look_for_room)
        if process.rank == 0:
            (self.folder / DONE).unlink(missing_ok=True)
            write_curriculum(self.curriculum, self.folder.parent / "curriculum.yaml")
            self.log = RunLog(
                self.folder.parent,
                stage=stage.name,
                show=self.options.show,
                tensorboard=self.options.tensorboard,
                from_step=self.step,
            )
        meter = Meter(device=process.device)
        began, saved = time.perf_counter() - self.seconds, time.perf_counter()
        bad = BadTally(self.loader.config.bad_share, self.loader.blend.records)
        profiler = contextlib.nullcontext()
        if self.options.profile and process.rank == 0:
            profiler = profile_window(self.folder / "profile", *self.options.profile)
        with stop_signals(say=process.rank == 0) as asked, snapshot_on_oom(self.folder), profiler as window:
            global_batches = iter(self.loader)
            while self.progress() < 1:
                self.export_milestones()
                rate = learning_rate(stage.lr, stage.warmup, stage.schedule, self.progress())
                detailed = self.step % self.layout.log_every == 0 or self.step + 1 == stage.steps
                tick = time.perf_counter()
                global_batch = next(global_batches)
                wait = time.perf_counter() - tick
                work = self.work_of(global_batch)
                losses = self.one_step(self.with_audio(global_batch), rate, detailed)
                minutes = (time.perf_counter() - saved) / 60
                due = (self.step + 1) % self.layout.checkpoint_every == 0 or minutes >= self.layout.checkpoint_minutes
                totals = self.totals(work, global_batch, bool(asked), due, time.perf_counter() - began)
                self.step, self.seen, self.position = self.step + 1, global_batch.seen, global_batch.position
                self.seconds = totals["seconds"]
                meter.step(**totals["work"], wait_s=wait, step_s=time.perf_counter() - tick)
                self.note_bad(global_batch)
                if stage.method == "grpo":  # GRPO reads audio itself, after the loader has counted bad samples
                    bad.add(global_batch.micro, self.position.step == 0)
                if self.log and detailed:
                    self.write(rate, losses | meter.row())
                if window:
                    window.step()
                if totals["failed"]:
                    self.checkpoints.wait()  # raises
                if totals["stop"] or totals["due"]:
                    self.save(wait=totals["stop"])
                    saved = time.perf_counter()
                if totals["stop"] and self.progress() < 1:
                    raise Stopped(f"{stage.name}: stopped after step {self.step}; its checkpoint is written")
            self.export_milestones()
            self.finish()
            if float(processes.sum_over(torch.tensor(float(bool(asked))))):
                raise Stopped(f"{stage.name}: stopped after its last step")

    def close(self) -> None:
        """Ends what runs beside the training; an error of the pending checkpoint must not hide why the run ends."""
        with contextlib.suppress(OSError):
            self.checkpoints.wait()
        if self.log:
            self.log.close()

    def export_milestones(self) -> None:
        """Writes the model at the points of this stage from which later stages start."""
        for at in self.curriculum.milestones(self.stage.name):
            if self.progress() >= at and at not in self.exported:
                self.save_before_export()
                self.export(f"{MODEL}-at-{at:g}")
                self.exported.append(at)

    def save(self, *, wait: bool) -> None:
        self.finite.flush()
        tensors = training_state(self.model, self.optimiser)
        self.checkpoints.save(self.step, tensors, self.facts(), wait=wait)
        self.saved = self.step

    def save_before_export(self) -> None:
        """Nothing is lost where the disk has no room for a model."""
        if self.saved == self.step:
            self.checkpoints.wait()
        else:
            self.save(wait=True)

    def write(self, rate: float, columns: dict[str, Any]) -> None:
        assert self.log is not None
        row = {"stage": self.stage.name, "step": self.step - 1, "progress": self.progress(), "seconds": self.seconds}
        row |= {"lr": rate} | columns | dict(zip(("cut", "dropped"), map(int, self.left_out), strict=True))
        self.left_out = [0.0, 0.0]
        self.log(row)
        self.log.answers(self.step - 1, getattr(self.method, "answers", ()))
        if self.options.on_row:
            self.options.on_row(row)

    def note_bad(self, global_batch: GlobalBatch) -> None:
        """Of the ranks that share the same samples, the first writes down those it could not use."""
        bad = [sample for micro in global_batch.micro for sample in micro.bad]
        if bad and self.process.rank % self.sp_size == 0:
            path = self.folder / "bad.jsonl"
            with named(path), path.open("a", encoding="utf-8") as file:
                for name, reason in bad:
                    file.write(json.dumps({"step": self.step - 1, "name": name, "reason": reason}) + "\n")

    def with_audio(self, global_batch: GlobalBatch) -> GlobalBatch:
        """The batch with a second of silence added to every micro-batch without audio, where weights are sharded.

        FSDP2 gathers weights and sums gradients layer by layer, so every rank must run every layer, the encoder's too.
        """
        if not self.sharded:
            return global_batch
        silence = self.processor.prepare(SILENCE)
        silence.labels = torch.full_like(silence.ids, IGNORED)
        for micro in global_batch.micro:
            if micro.batch is not None and micro.batch.pcm is None:
                micro.batch = join(micro.batch, self.processor.pack([silence]))
                micro.axes = [*micro.axes, ""]
        return global_batch

    def one_step(self, global_batch: GlobalBatch, rate: float, detailed: bool) -> dict[str, Any]:
        """One optimiser step, or as many as the method makes of a batch; returns loss and gradient norm for the log."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        norm = total = torch.zeros((), device=self.process.device)
        for losses in self.method.updates(global_batch, detailed=detailed):
            total = torch.zeros((), device=self.process.device)
            for number, loss in enumerate(losses, 1):
                set_sync(self.model, number == len(losses))
                value = loss()
                if value.requires_grad:  # a batch of text has no gradient where the language model is frozen
                    value.backward()
                total += value.detach()
            if not losses:
                continue
            norm = clip_grad_norm(trained, self.stage.clip)
            self.finite.observe(self.optimiser, total, norm, self.step)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        if not detailed:
            return {}
        losses = {"loss": float(processes.sum_over(total)), "grad_norm": float(norm)}
        return losses | self.method.metrics()

    def work_of(self, global_batch: GlobalBatch) -> dict[str, float]:
        """Tokens, audio seconds and FLOPs of a batch before silence is added; a rank's share where ranks share it."""
        batches = [micro.batch for micro in global_batch.micro if micro.batch is not None]
        work = step_work(self.model.config, batches, self.trains)
        return {name: amount / self.sp_size for name, amount in work.items()}

    def totals(
        self, work: dict[str, float], batch: GlobalBatch, stop: bool, due: bool, seconds: float
    ) -> dict[str, Any]:
        """What all ranks must agree on after a step: summed work, rank 0's clock, whether to stop or save."""
        for name, amount in self.method.work().items():
            work[name] += amount
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
        export_model(self.model, self.folder / name, getattr(torch, self.layout.dtype))
        if self.process.rank == 0:
            self.processor.save_pretrained(self.folder / name)
        processes.barrier()

    def finish(self) -> None:
        """Writes the finished model, and then done.json, which marks the stage as finished."""
        self.save_before_export()
        if self.stage.lora:
            lora.save(self.model, self.folder / "adapter")
        self.export(MODEL)
        if self.process.rank == 0:
            write_json(self.folder / DONE, {**self.facts(), "release_name": self.stage.release_name})


def sp_size(layout: RunLayout, stage: Stage) -> int:
    """Ranks that share each sequence in a stage."""
    return layout.ulysses * layout.ring if stage.method == "sft" else 1
