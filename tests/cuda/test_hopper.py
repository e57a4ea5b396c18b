"""What the emulated Hopper says of kernels with one fault each, and of their right versions."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from afn_kernels import _cuda
from tests.cuda import MemoryFault, compiler, emulated
from tests.cuda.tensor_map import encode

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")

# One block of two warpgroups; t: thread; s: 16 KB of shared memory, bar: behind them; d: sums of a product [64, 64].
START = "if (t == 0) { barrier_start(bar, 1); barrier_start(bar + 1, 128); barriers_started(); } sync_block();"
LOAD = "if (t == 0) { barrier_expect(bar, 8192); tensor_copy(s, &p.map, bar, 0, 0); }"
WAIT = "barrier_wait(bar, 0);"
PRODUCT = "wgmma_fence(); wgmma<Number::bf16, 64>(d, tile, tile, false);"
LOADED = START + LOAD + WAIT
FILL = "for (int i = t; i < 4096; i += 256) half[i] = 0;"
KERNELS = {
    "product": (LOADED + f"if (t < 128) {{ {PRODUCT} wgmma_commit(); wgmma_wait<0>(); p.y[t] = d[0]; }}", ""),
    "copy_not_awaited": (START + LOAD + f"if (t < 128) {{ {PRODUCT} }}", "a bulk copy .* the copy is still under way"),
    "copy_awaited_by_one": (
        START + LOAD + f"if (t == 0) {WAIT} if (t < 128) {{ {PRODUCT} }}",
        "reads shared .* which a bulk copy of block 0 wrote .* no barrier between them",
    ),
    "written_during_a_product": (
        LOADED + f"if (t < 128) {{ {PRODUCT} wgmma_commit(); half[2 * t] = 0; wgmma_wait<0>(); }}",
        r"writes shared .* which a product of block 0 read at faults.cu:\d+: nobody has let know that the product has",
    ),
    "copied_over_during_a_product": (
        LOADED + f"if (t < 128) {{ {PRODUCT} wgmma_commit(); }} {LOAD} if (t < 128) wgmma_wait<0>();",
        "writes shared memory at byte 0, which a product of block 0 read",
    ),
    "sums_read_early": (
        LOADED + f"if (t < 128) {{ {PRODUCT} wgmma_commit(); p.y[t] = d[0]; wgmma_wait<0>(); }}",
        r"reads a register of the product at faults.cu:\d+ before its wait",
    ),
    "not_committed": (
        LOADED + f"if (t < 128) {{ {PRODUCT} wgmma_wait<0>(); p.y[t] = d[0]; }}",
        "reads a register of the product",
    ),
    "registers_of_a_written_early": (
        LOADED + "if (t < 128) { wgmma_fence(); wgmma<Number::bf16, 64>(d, a, tile); wgmma_commit(); a[1] = t;"
        "wgmma_wait<0>(); }",
        "writes a register of the product",
    ),
    "product_not_awaited": (LOADED + f"if (t < 128) {{ {PRODUCT} wgmma_commit(); }}", "a product was never waited for"),
    "no_fence_of_registers": (
        LOADED + "if (t < 128) wgmma<Number::bf16, 64>(d, tile, tile);",
        "issues a product before its first fence of registers",
    ),
    "used_behind_the_fence": (
        LOADED + "wgmma_fence(); d[3] = 1; if (t < 128) wgmma<Number::bf16, 64>(d, tile, tile);",
        "issues a product whose registers it has used since its last fence",
    ),
    "half_a_warpgroup": (LOADED + f"if (t < 64) {{ {PRODUCT} }}", "64 wait for others of their warpgroup"),
    "two_descriptors": (
        LOADED + "wgmma_fence(); if (t < 128) wgmma<Number::bf16, 64>(d, tile + 2 * (t / 64), tile);",
        "issues another product than others of its warpgroup",
    ),
    "start_in_a_swizzle": (
        LOADED + "wgmma_fence(); if (t < 128) wgmma<Number::bf16, 64>(d, tile + 8, tile);",
        "a start outside of the first row of a swizzle's eight",
    ),
    # What threads write.
    "fenced_by_the_writers": (
        FILL + f"fence_async(); sync_block(); if (t < 128) {{ {PRODUCT} wgmma_commit(); wgmma_wait<0>(); }}",
        "",
    ),
    "fenced_behind_the_barrier": (
        FILL + f"sync_block(); fence_async(); if (t < 128) {{ {PRODUCT} wgmma_commit(); wgmma_wait<0>(); }}",
        "",
    ),
    "not_fenced": (FILL + f"sync_block(); if (t < 128) {{ {PRODUCT} }}", "no proxy fence between them"),
    "fenced_by_one": (
        FILL + f"if (t == 0) fence_async(); sync_block(); if (t < 128) {{ {PRODUCT} }}",
        "no proxy fence between them",
    ),
    "copied_over_not_fenced": (START + FILL + "sync_block();" + LOAD + WAIT, "writes .* no proxy fence between them"),
    # Barriers.
    "handed_on": (
        START + "if (t < 128) { half[2 * t] = t; barrier_arrive(bar + 1); }"
        "else { barrier_wait(bar + 1, 0); p.y[t] = half[2 * (255 - t)]; }",
        "",
    ),
    "written_again": (
        START + "if (t < 128) { half[2 * t] = t; barrier_arrive(bar + 1); half[2 * t] = 0; }"
        "else { barrier_wait(bar + 1, 0); p.y[t] = half[2 * (255 - t)]; }",
        "reads shared .* of block 0 wrote .* no barrier between them",
    ),
    "too_few_arrive": (
        START + "if (t < 127) barrier_arrive(bar + 1); if (t > 200) barrier_wait(bar + 1, 0);",
        "55 wait for a barrier's phase, 201 have returned",
    ),
    "start_not_fenced": (
        f"if (t == 0) {{ barrier_start(bar, 1); {LOAD} }}",
        "copies to a barrier that nobody has fenced since it was started",
    ),
    "a_barrier_read": (START + "p.y[t] = *bar;", "reads shared .* which a barrier of block 0 wrote .* is no memory"),
    "too_few_bytes": (
        START + "if (t == 0) { barrier_expect(bar, 8176); tensor_copy(s, &p.map, bar, 0, 0); }" + WAIT,
        "the bytes of a copy come to a phase of their barrier that does not expect them",
    ),
    "too_many_bytes": (
        START + "if (t == 0) { barrier_expect(bar, 8208); tensor_copy(s, &p.map, bar, 0, 0); }" + WAIT,
        "256 wait for a barrier's phase",
    ),
    "copies_never_awaited": (START + LOAD, "copies were never waited for"),
    "three_coordinates": (START + "tensor_copy(s, &p.map, bar, 0, 0, 0);", "3 coordinates of a tensor of 2"),
    "box_not_aligned": (START + "tensor_copy(s + 64, &p.map, bar, 0, 0);", "no multiple of 128 bytes"),
    "a_copy_of_the_map": (
        START + "TensorMap map = p.map; tensor_copy(s, &map, bar, 0, 0);",
        "a tensor map that is not a parameter",
    ),
    "plain_bulk_copy": (
        START + "if (t == 0) { barrier_expect(bar, 64); bulk_copy(s, p.y, 64, bar); } barrier_wait(bar, 0);"
        "if (t < 16) p.y[64 + t] = reinterpret_cast<float*>(s)[t];",
        "",
    ),
    # Barriers of some warps.
    "named": ("if (t < 64) { half[2 * t] = t; named_sync(1, 64); p.y[t] = half[2 * (63 - t)]; }", ""),
    "named_handed_on": (
        "if (t < 128) { half[2 * t] = t; named_arrive(3, 256); }"
        "else { named_sync(3, 256); p.y[t] = half[2 * (255 - t)]; }",
        "",
    ),
    "who_arrives_knows_nothing": (
        "if (t >= 128) { half[2 * t] = t; named_sync(3, 256); } else { named_arrive(3, 256); p.y[t] = half[511]; }",
        "which nobody has written|no barrier between them",
    ),
    "named_of_two_counts": ("named_sync(1, t < 32 ? 128 : 64);", "meets 64 threads .* where others meet 128"),
    "named_twice": ("named_arrive(2, 256); if (t == 0) named_arrive(2, 256);", "arrives a second time"),
    "half_a_warp": ("if (t % 32 < 16) named_sync(1, 128);", "at which a part of a warp has arrived"),
    "never_met": ("if (t < 32) named_arrive(1, 64);", "have arrived at a named barrier that was never met"),
    # Registers: a thread of this block begins with 256.
    "registers": ("if (t < 128) registers_less<128>(); else { registers_less<240>(); registers_more<256>(); }", ""),
    "more_than_it_may": ("registers_more<240>();", "asks for 240 registers where it has 256, to have more"),
}
KERNEL = """AFN_KERNEL({name}, afn::P, 256, 1) {{
    using namespace afn;
    unsigned char* s = shared_memory();
    [[maybe_unused]] uint16_t* half = reinterpret_cast<uint16_t*>(s);
    [[maybe_unused]] uint64_t* bar = reinterpret_cast<uint64_t*>(s + 16384);
    [[maybe_unused]] uint64_t tile = descriptor(s, 16, 1024, Swizzle::bytes_128);
    [[maybe_unused]] float d[32];
    [[maybe_unused]] uint32_t a[4] = {{}};
    [[maybe_unused]] int t = thread_index();
    {body}
}}
"""
# Right where threads wait in line: who is slow misses the phase that it waits for.
RACE = START + (
    "if (t < 32) { barrier_wait(bar, 0); barrier_wait(bar, 1); }"
    "if (t >= 32 && t < 64) { if (t == 32) barrier_arrive(bar); sync_warp(); if (t == 32) barrier_arrive(bar); }"
)
# The tile at (x, y, z) of a tensor of three dimensions, as it lies in shared memory.
BOX = (
    START + "if (t == 0) { barrier_expect(bar, 2048); tensor_copy(s, &p.map, bar, p.x, p.r, p.z); }" + WAIT
    + "for (int i = t; i < 1024; i += 256) p.y[i] = from_bf16(half[i]);"
)  # fmt: skip


@pytest.fixture(scope="module")
def csrc(tmp_path_factory) -> Path:
    """A folder as csrc is, with the kernels in cuda/faults.cu."""
    folder = tmp_path_factory.mktemp("csrc")
    (folder / "include").symlink_to(_cuda.sources() / "include")
    (folder / "cuda").mkdir()
    text = '#include "afn/hopper.cuh"\nnamespace afn { struct P { TensorMap map; float* y; int x, r, z; }; }\n'
    bodies = {name: body for name, (body, _) in KERNELS.items()} | {"box": BOX, "race": RACE}
    text += "".join(KERNEL.format(name=name, body=body) for name, body in bodies.items())
    (folder / "cuda" / "faults.cu").write_text(text)
    return folder


def launch(name: str, tensor_map: bytes, csrc: Path, *at: int, schedule: int = 0) -> torch.Tensor:
    memory = torch.zeros(1100)
    y = memory[-memory.data_ptr() // 4 % 4 :][:1024]
    with emulated(csrc=csrc, schedule=schedule):
        kernel = _cuda.Kernel("faults", name, "128sPiii44x", 256)
        kernel.launch((1, 1), 16400, y.device, tensor_map, y.data_ptr(), *(at or (0, 0, 0)))
    return y


@pytest.mark.parametrize(("name", "sentence"), [(name, said) for name, (_, said) in KERNELS.items()], ids=KERNELS)
def test_what_is_said(name, sentence, csrc):
    x = torch.ones(64, 64).bfloat16()
    with pytest.raises(MemoryFault) if sentence else nullcontext() as fault:
        launch(name, encode(x, (64, 64), 128), csrc)
    assert not sentence or re.search(sentence, str(fault.value)), fault.value


@pytest.mark.parametrize("at", [(0, 0, 0), (10, 5, 1), (-3, -2, -1), (40, 8, 2)])
def test_a_box_of_three_dimensions(at, csrc):
    """What lies outside is zero; 16 bytes of a row lie where the swizzle has them."""
    x = torch.arange(3 * 9 * 48).reshape(3, 9, 48).remainder(199).bfloat16()
    y = launch("box", encode(x, (2, 16, 32), 64), csrc, *at)
    around = torch.zeros(3 + 8, 9 + 64, 48 + 128)
    around[4:7, 32:41, 64:112] = x.float()
    box = around[4 + at[2] :, 32 + at[1] :, 64 + at[0] :][:2, :16, :32].reshape(32, 4, 8)
    rows = y.reshape(32, 4, 8)
    for row in range(32):
        for chunk in range(4):
            assert torch.equal(rows[row, chunk ^ row // 2 % 4], box[row, chunk]), (row, chunk)


def test_who_is_slow_in_another_order(csrc):
    tensor_map = encode(torch.ones(64, 64).bfloat16(), (64, 64), 128)
    launch("race", tensor_map, csrc)
    said = []
    for seed in range(1, 6):
        launch("product", tensor_map, csrc, schedule=seed)
        try:
            launch("race", tensor_map, csrc, schedule=seed)
        except MemoryFault as fault:
            said.append(str(fault))
    assert said
    assert all(re.search(r"no thread of block 0 can go on: \d+ wait for a barrier's phase", text) for text in said)
