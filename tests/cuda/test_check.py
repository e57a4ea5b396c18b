"""The checker of tests/cuda: small kernels with one fault each, and what is said of them; and their right versions."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from afn_kernels import _cuda
from tests.cuda import MemoryFault, compiler, emulated

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")

# Two blocks of 64 threads; t, b: thread and block; s: 256 floats of shared memory; p.x: 512 floats, p.count: zeros.
KERNELS = {
    "barrier": ("s[t] = t; sync_block(); p.x[64 * b + t] = s[63 - t];", ""),
    "unwritten": ("p.x[64 * b + t] = s[t];", r"thread 0 of block 0 reads shared .* byte 0, which nobody has written"),
    "read_then_written": (
        "s[t] = 0; sync_block(); if (t < 32) p.x[64 * b + t] = s[63 - t]; else s[t] = 1;",
        r"thread 32 of block 0 writes shared memory at byte 128, which thread 31 of block 0 read at faults.cu:\d+: "
        "no barrier",
    ),
    "written_then_read": (
        "if (t == 0) s[0] = 1; if (t > 40) p.x[64 * b + t] = s[0];",
        r"thread 41 of block 0 reads shared .* which thread 0 of block 0 wrote at faults.cu:\d+: no barrier",
    ),
    "written_twice": ("s[0] = t;", "thread 1 of block 0 writes shared memory at byte 0, which thread 0 .* wrote"),
    "halves_of_a_word": ("reinterpret_cast<uint16_t*>(s)[t] = 1; sync_block(); p.x[64 * b + t] = s[t / 2];", ""),
    "warp_barrier": ("s[t] = t; sync_warp(); p.x[64 * b + t] = s[t ^ 1];", ""),
    "warp_barrier_of_another_warp": (
        "s[t] = t; sync_warp(); p.x[64 * b + t] = s[t & 31];",
        "thread 32 of block 0 reads .* which thread 0 of block 0 wrote .* no barrier",
    ),
    "shuffles_order_nothing": (
        "s[t] = t; float y = shuffle_xor(1.0f, 1); p.x[64 * b + t] = y + s[t & 32];",
        "thread 1 of block 0 reads .* which thread 0 of block 0 wrote .* no barrier",
    ),
    "not_all_at_the_barrier": (
        "if (t < 32) sync_block();",
        "no thread of block 0 can go on: 32 wait for the block's barrier, 32 have returned",
    ),
    "beyond": ("s[256] = 1;", "is beyond the 1024 bytes of shared memory, at byte 1027"),
    "not_aligned": (
        "*reinterpret_cast<float2*>(s + 2 * t) = *reinterpret_cast<float2*>(p.x + 1);",
        "8 bytes at global memory .* are not aligned",
    ),
    "load_not_aligned": ("p.x[t] = load_global(reinterpret_cast<float2*>(p.x + 1)).x;", "8 bytes that are not aligned"),
    "no_such_memory": (
        "p.x[64 * b + t] = *reinterpret_cast<float*>(16);",
        r"faults.cu:\d+: thread 0 of block 0 uses memory that is not there, at global memory at 0x10",
    ),
    "single_byte": ("reinterpret_cast<char*>(p.x)[t] = 1;", "writes a single byte"),
    # Between blocks.
    "arrive": ("p.x[64 * b + t] = t; if (arrive(p.count, 2, last)) p.x[64 * b + t] = load_global(p.x + t);", ""),
    "one_fence_behind_the_barrier": (
        "p.x[64 * b + t] = t; sync_block(); if (t == 0) { fence(); *last = atomic_add(p.count, 1); fence(); }"
        "sync_block(); if (*last) p.x[200 + t] = load_global(p.x + t);",
        "",
    ),
    "fences_before_the_barrier": (
        "p.x[64 * b + t] = t; fence(); sync_block(); if (t == 0) { *last = atomic_add(p.count, 1); fence(); }"
        "sync_block(); if (*last) p.x[200 + t] = load_global(p.x + t);",
        r"thread 1 of block 1 reads global .* which thread 1 of block 0 wrote at faults.cu:\d+: "
        "nothing has released and acquired it",
    ),
    "no_fence_behind": (
        "p.x[64 * b + t] = t; sync_block(); if (t == 0) { fence(); *last = atomic_add(p.count, 1); }"
        "sync_block(); if (*last) p.x[200 + t] = load_global(p.x + t);",
        "nothing has released and acquired it",
    ),
    "acquired_by_one_thread": (
        "p.x[64 * b + t] = t; sync_block(); if (t == 0) *last = atomic_add_release_acquire(p.count, 1);"
        "if (b == 1) p.x[200 + t] = load_global(p.x + t);",
        "thread 1 of block 1 reads .* nothing has released and acquired it",
    ),
    "written_after_the_release": (
        "bool done = arrive(p.count, 2, last); if (!done && t == 0) p.x[0] = 1;"
        "if (done) p.x[64 + t] = load_global(p.x);",
        "thread 0 of block 1 reads .* which thread 0 of block 0 wrote .* nothing has released",
    ),
    "another_counter": (
        "p.x[64 * b + t] = t; if (arrive(p.count + b, 1, last)) p.x[200 + t] = load_global(p.x + t);",
        "nothing has released and acquired it",
    ),
    "through_l1": (
        "p.x[64 * b + t] = t; if (arrive(p.count, 2, last)) p.x[64 * b + t] = p.x[t];",
        "L1 may hold what was there before",
    ),
    "overwritten_while_read": (
        "if (b == 0) p.x[64 + t] = p.x[0]; else p.x[0] = 1;",
        "thread 0 of block 1 writes global .* which several threads of block 0 read .* nothing has released",
    ),
    "a_counter_is_not_written": (
        "if (b == 0) atomic_add(p.count, 1); else *p.count = 0;",
        "thread 0 of block 1 writes global .* of block 0 wrote",
    ),
    # Asynchronous copies.
    "copy": (
        "copy_async(s + 4 * t, p.x + 4 * t); copy_commit(); copy_wait<0>(); p.x[256 + 64 * b + t] = s[4 * t];",
        "",
    ),
    "copy_not_awaited": (
        "copy_async(s + 4 * t, p.x + 4 * t); copy_commit(); copy_wait<1>(); p.x[256 + t] = s[4 * t]; copy_wait<0>();",
        "which thread 0 of block 0 wrote at .*: the copy is still under way",
    ),
    "copy_of_another_thread": (
        "copy_async(s + 4 * t, p.x + 4 * t); copy_commit(); copy_wait<0>();if (t % 2) p.x[256 + t] = s[4 * (t - 1)];",
        "thread 1 of block 0 reads .* which thread 0 of block 0 wrote at .*: no barrier",
    ),
    "copy_to_where_others_read": (
        "s[4 * t] = 0; sync_block(); if (t % 2 == 0) p.x[256 + t] = s[4 * (t + 1)];"
        "if (t % 2) copy_async(s + 4 * t, p.x + 4 * t); copy_commit(); copy_wait<0>();",
        "thread 1 of block 0 writes shared .* which thread 0 of block 0 read .* no barrier",
    ),
    "copy_never_awaited": ("copy_async(s + 4 * t, p.x + 4 * t); copy_commit();", "a copy was never waited for"),
    # Bulk copies: s + 8 on; the barrier lies at s.
    "bulk": (
        "if (t == 0) bulk_start(bar); sync_block();"
        "for (int i = 0; i < 3; ++i) {"
        "  if (t == 0) { bulk_expect(bar, 32); bulk_copy(s + 8, p.x, 16, bar); bulk_copy(s + 12, p.x, 16, bar); }"
        "  bulk_wait(bar, i % 2); p.x[256 + 64 * b + t] = s[8 + t % 8]; sync_block();"
        "}",
        "",
    ),
    "bulk_not_awaited": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); p.x[256] = s[8]; }",
        "which a bulk copy of block 0 wrote at .*: the copy is still under way",
    ),
    "bulk_awaited_by_one": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); bulk_wait(bar, 0); }"
        "p.x[256 + t] = s[8];",
        "thread 1 of block 0 reads .* which a bulk copy of block 0 wrote at .*: no barrier",
    ),
    "bulk_never_awaited": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); }",
        "bulk copies were never waited for",
    ),
    "bulk_too_few_bytes": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 32); bulk_copy(s + 8, p.x, 16, bar); bulk_wait(bar, 0); }",
        "1 wait for bytes of a bulk barrier, 63 have returned",
    ),
    "bulk_too_many_bytes": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 32, bar); }",
        "copies 32 bytes where the bulk barrier expects 16",
    ),
    "bulk_not_expected": (
        "if (t == 0) { bulk_start(bar); bulk_copy(s + 8, p.x, 32, bar); }",
        "copies in bulk what its barrier does not expect",
    ),
    "bulk_again_too_early": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); bulk_expect(bar, 16); }",
        "before those expected last have come",
    ),
    "bulk_over_what_is_under_way": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 32); }"
        "for (int i = 0; t == 0 && i < 2; ++i) bulk_copy(s + 8, p.x, 16, bar);",
        "writes shared .* which a bulk copy of block 0 wrote at .*: the copy is still under way",
    ),
    "bulk_not_started": ("if (t == 0) bulk_expect(bar, 16);", "uses a bulk barrier that was never started"),
    "bulk_start_not_seen": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); } bulk_wait(bar, 0);",
        "thread 1 of block 0 reads shared memory at byte 0, which thread 0 of block 0 wrote .* no barrier",
    ),
    "bulk_wrong_phase": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); bulk_wait(bar, 1); }",
        "waits for the second phase of a bulk barrier before the first",
    ),
    "bulk_waited_for_too_late": (
        "if (t == 0) bulk_start(bar); sync_block();"
        "if (t == 0) for (int i = 0; i < 2; ++i) {"
        "  bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); if (i == 0) bulk_wait(bar, 0);"
        "}"
        "bulk_wait(bar, 0);",
        "thread 1 of block 0 waits for a bulk barrier after its next bytes were expected",
    ),
    "bulk_of_what_was_written": (
        "if (t == 0) { p.x[0] = 1; bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x, 16, bar); }",
        "bulk copies see it behind a proxy fence only",
    ),
    "bulk_not_aligned": (
        "if (t == 0) { bulk_start(bar); bulk_expect(bar, 16); bulk_copy(s + 8, p.x + 1, 16, bar); }",
        "copies in bulk what is no multiple of 16 bytes",
    ),
}
KERNEL = """AFN_KERNEL({name}, afn::P, 64, 1) {{
    using namespace afn;
    [[maybe_unused]] float* s = reinterpret_cast<float*>(shared_memory());
    [[maybe_unused]] uint64_t* bar = reinterpret_cast<uint64_t*>(shared_memory());
    [[maybe_unused]] int t = thread_index(), b = block_index(), *last = reinterpret_cast<int*>(s + 255);
    {body}
}}
"""


@pytest.fixture(scope="module")
def csrc(tmp_path_factory) -> Path:
    """A folder as csrc is, with the kernels in cuda/faults.cu."""
    folder = tmp_path_factory.mktemp("csrc")
    (folder / "include").symlink_to(_cuda.sources() / "include")
    (folder / "cuda").mkdir()
    text = '#include "afn/device.cuh"\nnamespace afn { struct P { float* x; int* count; }; }\n'
    text += "".join(KERNEL.format(name=name, body=body) for name, (body, _) in KERNELS.items())
    (folder / "cuda" / "faults.cu").write_text(text)
    return folder


@pytest.mark.parametrize(("name", "sentence"), [(name, said) for name, (_, said) in KERNELS.items()], ids=KERNELS)
def test_what_is_said(name, sentence, csrc):
    memory = torch.zeros(520)
    x, count = memory[-memory.data_ptr() // 4 % 4 :][:512], torch.zeros(2, dtype=torch.int32)
    kernel = _cuda.Kernel("faults", name, "PP", 64)
    with emulated(csrc=csrc):
        launch = lambda: kernel.launch((2, 1), 1024, torch.device("cpu"), x.data_ptr(), count.data_ptr())  # noqa: E731
        with pytest.raises(MemoryFault) if sentence else nullcontext() as fault:
            launch()
    assert not sentence or re.search(sentence, str(fault.value)), fault.value


def test_a_launch_after_a_fault_is_as_good_as_any(csrc):
    for name in ("not_all_at_the_barrier", "barrier", "bulk_not_awaited", "no_such_memory", "barrier"):
        test_what_is_said(name, KERNELS[name][1], csrc)
