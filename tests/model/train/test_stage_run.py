"""Stages one after another: nothing of one is left when the next begins."""

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

from afn_model.train.curriculum import Start, read_curriculum
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options, StageRun
from afn_model.train.trainer import train
from bench.resume import prepare
from tests.distributed.ranks import run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def sockets() -> int:
    found = 0
    for file in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{file}").startswith("socket:")
        except OSError:
            continue  # the listing's own
    return found


def held() -> dict[str, int]:
    """What this process has, without collecting garbage first."""
    objects = gc.get_objects()
    return {
        "groups": len(dist.distributed_c10d._world.pg_map),
        "sockets": sockets(),
        "weights": sum(each.numel() for each in objects if isinstance(each, nn.Parameter)),
        "stages": sum(isinstance(each, StageRun) for each in objects),
    }


def three_stages(here, folder: str) -> None:
    """Ranks that share sequences and replicate weights: groups of every kind."""
    found, counts = read_curriculum(Path(folder) / "tones.yaml"), []
    first = replace(found.stages[0], steps=1)
    others = [replace(first, name=name, start=Start(before)) for name, before in (("b", "all"), ("c", "b"))]
    layout = RunLayout(workers=0, shard=1, ulysses=2)
    gc.disable()
    train(
        replace(found, stages=(first, *others)),
        Path(folder) / "base",
        Path(folder) / "run",
        layout=layout,
        process=here,
        options=Options(show=False, tensorboard=False),
        on_stage=lambda *_: counts.append(held()),
    )
    gc.enable()
    if here.rank == 0:
        assert [count["weights"] for count in counts] == [0, 0, 0]
        assert [count["stages"] for count in counts] == [0, 0, 0]
        assert counts[1] == counts[0] == counts[2], counts
        # That of all ranks, and that of the mesh that DTensor goes on using.
        assert counts[0]["groups"] == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_three_stages_leave_no_more_than_one(tmp_path):
    prepare(tmp_path)
    run(2, three_stages, str(tmp_path))
