"""Tables of what was found, and of what changed."""

from bench.sm90.tables import against, loops, table

KERNEL = {
    "op": "rms_norm", "workload": "8192 x 3584", "kernel": "backward_kernel", "registers": 80, "spills": 0,
    "shared": 8192, "threads": 256, "hgmma": 0, "hmma": 0, "blocks": 3, "instructions": 221, "issue_clk": 442,
    "tensor_clk": 0, "mufu_clk": 0, "programs": 528, "resident": 396,
}  # fmt: skip
FLOOR = {
    "op": "rms_norm", "workload": "8192 x 3584", "bytes": 100, "least_bytes": 90, "traffic": 1.1, "flops": 0,
    "floor_us_h100": 1.0, "floor_us_h200": 0.5,
}  # fmt: skip


def test_programs_against_those_that_fit():
    assert "| 221 | 442 | 0 | 0 | 528 | 396 | 1.33 |" in loops([KERNEL])[-1]
    assert table([KERNEL, FLOOR]).count("backward_kernel") == 2


def test_what_changed():
    before = [KERNEL, KERNEL | {"kernel": "gone_kernel"}, FLOOR]
    after = [KERNEL | {"instructions": 200, "programs": 396}, KERNEL | {"kernel": "new_kernel"}, FLOOR]
    lines = against(before, after).splitlines()[2:]
    assert lines == [
        "| rms_norm | 8192 x 3584 | `backward_kernel` | instructions 221 → 200, programs 528 → 396 |",
        "| rms_norm | 8192 x 3584 | `gone_kernel` | gone |",
        "| rms_norm | 8192 x 3584 | `new_kernel` | new |",
    ]
    assert len(against(before, before).splitlines()) == 2


def test_kernels_of_one_name_are_numbered():
    twice = [KERNEL, KERNEL | {"registers": 30}]
    assert "(2) | registers 30 → 31" in against(twice, [KERNEL, KERNEL | {"registers": 31}])
