"""Every loop of every Triton kernel, three times and more with the tiles of a GPU: what short cases never reach."""

import pytest

from tests.kernels import loops
from tests.kernels.harness import check_budget
from tests.kernels.test_every_op import runs
from tests.kernels.tile_cases import THREE, TILE_CASES

# Loops that no length makes longer, and why.
SHORT = {
    "log_mel.log_mel_kernel/power": "64 columns in two pieces",
    "paged_attention.paged_kernel/_attend": "a tile of queries on either side of a tile of keys",
    "attention.forward_kernel/_attend": "a tile of queries on either side of a tile of keys",
    "attention.dq_kernel/_dq": "a tile of queries on either side of a tile of keys",
}


def test_every_loop_of_every_kernel_has_a_case():
    """A loop that is new in a kernel fails here until a case runs it; so does a case of a loop that is gone."""
    reached = {loop for case in TILE_CASES for loop in case.loops}
    assert reached == loops.declared_in_source()


def test_only_loops_that_cannot_be_longer_are_short():
    short = {loop for case in TILE_CASES for loop, least in case.loops.items() if least < THREE}
    assert all(any(loop.startswith(start) for start in SHORT) for loop in short)
    assert all(any(loop.startswith(start) for loop in short) for start in SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("case", TILE_CASES, ids=str)
def test_within_budget_on_a_gpus_tiles(case, device):
    """In the interpreter each loop is counted: what a case says of them holds."""
    runs(case.case, "triton", device)
    (dtype,) = case.case.dtypes
    if device.type == "cuda":
        check_budget(case.case, dtype, device, "triton")
        return
    with loops.gpu_tiles(case.processors, case.together), loops.counted() as most:
        check_budget(case.case, dtype, device, "triton")
    assert all(most[loop] >= least for loop, least in case.loops.items()), {x: most[x] for x in case.loops}
