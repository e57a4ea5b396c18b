"""The trainer: runs a curriculum stage by stage, and resumes a stage from its last checkpoint."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_distributed.roll_call import RankEnded, roll_call
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.lock import locked
from afn_model.train.planner import check_host, config_of
from afn_model.train.prepare import agreed, announce, finished_stages, prepare
from afn_model.train.run_layout import RunLayout, for_stage
from afn_model.train.stage_run import Options, StageRun, sp_size
from afn_model.train.validate import MODEL, check


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
                here = for_stage(layout, stage)
                check(curriculum, stage, process.world_size, sp_size(here, stage))
                cut = process.world_size > 1 or here.dtype != "float32"
                if cut and not dry_run and process.world_size % (here.shard or 1):
                    cut = f"{process.world_size} ranks cannot be cut into groups of {here.shard}"
                    raise ValueError(
                        f"stage {stage.name}: {cut} that share the weights; give --set shard=0 or a divisor"
                    )

            def begin() -> set[str]:
                if not dry_run:
                    held.enter_context(locked(out))
                done = finished_stages(stages, out, allow_changes, curriculum)
                todo = [stage for stage in stages if stage.name not in done]
                for stage in todo:
                    look_for_host_memory(stage, for_stage(layout, stage), Path(base), process.world_size)
                for name in sorted(done):
                    announce(f"{name}: done before", options.show)
                prepare(curriculum, todo, Path(base), show=options.show, strict=options.strict)
                return done

            done = agreed(process, begin)
            for stage in () if dry_run else stages:
                if stage.name not in done:
                    first = Path(init_from) if init_from and stage is stages[0] else None
                    given = curriculum, stage, Path(base), out, for_stage(layout, stage), process, options
                    run_stage(partial(StageRun, *given, allow_changes=allow_changes, init_from=first))
                    # Only now is the stage's model garbage, which the next one would be loaded beside.
                    gc.collect()
                    if process.device.type == "cuda":
                        torch.cuda.empty_cache()
                if on_stage and process.rank == 0:
                    on_stage(stage, out / stage.name / MODEL)
                processes.barrier()
    except RankEnded as error:
        raise ValueError(str(error)) from None
    finally:
        if own:
            processes.stop()


def look_for_host_memory(stage: Stage, layout: RunLayout, base: Path, ranks: int) -> None:
    """ValueError where a machine has too little memory for what a stage offloads."""
    if layout.offload_optimiser or layout.offload_activations:
        check_host(config_of(stage, base), stage, layout, ranks, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def run_stage(begin: Callable[[], StageRun]) -> None:
    """One stage from its model's loading to its end; no reference to the model is left."""
    run = begin()
    with contextlib.closing(run):
        run.run()
    processes.barrier()
    run.release()
