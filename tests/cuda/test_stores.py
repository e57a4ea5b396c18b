"""What the emulated Hopper does and says of asynchronous stores and sums."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from afn_kernels import _cuda
from tests.cuda import MemoryFault, compiler, emulated
from tests.cuda.tensor_map import encode

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")

# Blocks of 64 threads; t: thread; s: 64 rows of 32 floats in shared memory, y: a tensor of them.
FILL = "for (int i = t; i < 2048; i += 64) s[i] = p.add + i;"
FENCE = "fence_async(); sync_block();"
STORE = "if (t == 0) { tensor_store(&p.map, s, 0, 0); store_commit();"
ADD = "if (t == 0) { tensor_add(&p.map, s, 0, 0); store_commit();"
FILLED = FILL + FENCE
READ = "store_wait_read<0>(); }"
KERNELS = {
    "stored": (FILLED + STORE + READ, ""),
    "fenced_behind_the_barrier": (FILL + f"sync_block(); if (t == 0) fence_async(); {STORE} {READ}", ""),
    "two_groups": (
        FILLED + "if (t == 0) { bulk_store(p.y, s, 4096); store_commit(); bulk_store(p.y + 1024, s + 1024, 4096);"
        "store_commit(); store_wait_read<1>(); } sync_block(); if (t) s[t] = 0; if (t == 0) store_wait_read<0>();",
        "",
    ),
    "read_back": (FILLED + STORE + "store_wait<0>(); } sync_block(); s[t] = p.y[t];", ""),
    "summed": (FILLED + ADD + READ, ""),
    "summed_by_lines": (FILLED + "if (t == 0) { bulk_add(p.y, s, 8192); store_commit(); store_wait<0>(); }", ""),
    "not_fenced": (FILL + f"sync_block(); {STORE} {READ}", "no proxy fence between them"),
    "fenced_by_one": (FILL + f"if (t == 0) fence_async(); sync_block(); {STORE} {READ}", "no proxy fence between them"),
    "not_synchronised": (
        FILL + f"fence_async(); {STORE.replace('0)', '63)', 1)} {READ}",
        "reads shared .* no barrier between them",
    ),
    "not_awaited": (FILLED + STORE + "}", "a store was never waited for until its bytes were read"),
    "not_committed": (
        FILLED + "if (t == 0) { tensor_store(&p.map, s, 0, 0); store_wait<0>(); }",
        "a store was never waited for",
    ),
    "one_of_two_awaited": (
        FILLED + "if (t == 0) { bulk_store(p.y, s, 4096); store_commit(); bulk_store(p.y + 1024, s + 1024, 4096);"
        "store_commit(); store_wait_read<1>(); } sync_block(); s[t] = 0; s[1024 + t] = 0;",
        r"writes shared memory at byte 4096, which a store of block 0 read at stores.cu:\d+: nobody has let know that "
        "the store has come so far",
    ),
    "overwritten": (
        FILLED + STORE + "} sync_block(); s[t] = 0; if (t == 0) store_wait_read<0>();",
        "writes shared memory at byte 0, which a store of block 0 read",
    ),
    "overwritten_by_others": (
        FILLED + STORE + READ + "if (t == 1) s[t] = 0;",
        "thread 1 of block 0 writes shared memory at byte 4, which a store of block 0 read",
    ),
    "read_back_once_it_was_read": (
        FILLED + STORE + READ + "sync_block(); s[t] = p.y[t];",
        "reads global .*, which a store of block 0 wrote .* the copy is still under way",
    ),
    "read_back_by_others": (
        FILLED + STORE + "store_wait<0>(); } if (t == 1) s[t] = p.y[t];",
        "reads global .*, which a store of block 0 wrote .* nobody has let know",
    ),
    "sum_read_early": (
        FILLED + ADD + READ + "sync_block(); s[t] = p.y[t];",
        "reads global .*, which a store of block 0 wrote .* nobody has let know",
    ),
    "zeroed_by_threads": (
        FILL + f"for (int i = t; i < 2048; i += 64) p.y[i] = 0; {FENCE} {ADD} {READ}",
        "which thread .* wrote .* bulk copies see it behind a proxy fence only",
    ),
    "zeroed_by_a_store": (FILLED + STORE + f"store_wait<0>(); }} {ADD} {READ}", ""),
    "zeroed_by_a_store_under_way": (FILLED + STORE + f"}} {ADD} {READ}", "the copy is still under way"),
    "two_coordinates_too_few": (FILLED + "tensor_store(&p.map, s, 0, 0, 0, 0);", "4 coordinates of a tensor of 2"),
    "beyond": (FILLED + "bulk_store(p.y, s + 1024, 8192);", "beyond the 8192 bytes of shared memory, at byte 12287"),
    "odd": (FILLED + "bulk_store(p.y + 1, s, 64);", "no multiple of 16 bytes"),
    # Blocks, one after the other.
    "in_turn": (
        FILLED + "if (t == 0) { wait_for(p.turn, block_index()); tensor_add(&p.map, s, 0, 0); store_commit();"
        "store_wait<0>(); atomic_add_release(p.turn, 1); }",
        "",
    ),
    "never_my_turn": ("if (t == 0) wait_for(p.turn, 1 + block_index());", "waits for 1 in global .*, where 0 stays"),
}  # fmt: skip
IN_TURN = KERNELS["in_turn"][0]
# Right by themselves; sums in no order.
UNORDERED = {
    "in_no_turn": FILLED + ADD + "store_wait<0>(); }",
    "turn_given_early": IN_TURN.replace("store_wait<0>", "store_wait_read<0>"),
    "turn_not_released": IN_TURN.replace("add_release", "add"),
    "turn_not_acquired": IN_TURN.replace("p.turn, block_index()", "p.turn, block_index(), false").replace(
        "wait_for", "host::wait_for"
    ),
}
BOX = (
    FILLED + "if (t == 0) { tensor_store(&p.map, s, p.at, p.at - 1, p.at + 1); store_commit(); store_wait_read<0>(); }"
)
LAYOUT = "128sPPii40x"
KERNEL = """AFN_KERNEL({name}, afn::Stores, 64, 1) {{
    using namespace afn;
    float* s = reinterpret_cast<float*>(shared_memory());
    [[maybe_unused]] int t = thread_index();
    {body}
}}
"""


@pytest.fixture(scope="module")
def csrc(tmp_path_factory) -> Path:
    """A folder as csrc is, with the kernels in cuda/stores.cu."""
    folder = tmp_path_factory.mktemp("csrc")
    (folder / "include").symlink_to(_cuda.sources() / "include")
    (folder / "cuda").mkdir()
    text = (
        '#include "afn/hopper.cuh"\nnamespace afn { struct Stores { TensorMap map; float* y; int *turn, at, add; }; }\n'
    )
    bodies = {name: body for name, (body, _) in KERNELS.items()} | UNORDERED | {"box": BOX}
    text += "".join(KERNEL.format(name=name, body=body) for name, body in bodies.items())
    (folder / "cuda" / "stores.cu").write_text(text)
    return folder


def aligned(*shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    memory = torch.zeros(count + 4)
    return memory[-memory.data_ptr() // 4 % 4 :][:count].view(shape)


def launch(name: str, y: torch.Tensor, tensor_map: bytes, csrc: Path, blocks=1, at=0, ordered=False) -> torch.Tensor:
    turn = torch.zeros(1, dtype=torch.int32)
    with emulated(csrc=csrc, ordered_adds=ordered):
        kernel = _cuda.Kernel("stores", name, LAYOUT, 64)
        kernel.launch((blocks, 1), 8192, y.device, tensor_map, y.data_ptr(), turn.data_ptr(), at, 7)
    return y


@pytest.mark.parametrize(("name", "sentence"), [(name, said) for name, (_, said) in KERNELS.items()], ids=KERNELS)
def test_what_is_said(name, sentence, csrc):
    y = aligned(64, 32)
    with pytest.raises(MemoryFault) if sentence else nullcontext() as fault:
        launch(name, y, encode(y, (64, 32), 0), csrc)
    assert not sentence or re.search(sentence, str(fault.value)), fault.value
    times = 2 if name == "zeroed_by_a_store" else 1
    if not sentence:
        assert torch.equal(y.flatten(), times * torch.arange(7.0, 2055))


def test_sums_of_several_blocks(csrc):
    y = aligned(64, 32).fill_(5)
    launch("summed", y, encode(y, (64, 32), 0), csrc, blocks=3)
    assert torch.equal(y.flatten(), 5 + 3 * torch.arange(7.0, 2055))


@pytest.mark.parametrize("name", ["in_turn", *UNORDERED])
def test_sums_whose_order_matters(name, csrc):
    """Where a kernel says that it is the same each time, nothing but a turn orders what blocks add."""
    y = aligned(64, 32)
    launch(name, y, encode(y, (64, 32), 0), csrc, blocks=3)
    assert torch.equal(y.flatten(), 3 * torch.arange(7.0, 2055))
    said = "block 1 writes global .*, which a store of block 0 wrote .*: nothing orders the sums"
    with nullcontext() if name == "in_turn" else pytest.raises(MemoryFault, match=said):
        launch(name, y, encode(y, (64, 32), 0), csrc, blocks=3, ordered=True)


def test_more_shared_memory_than_a_block_may_have(csrc):
    y = aligned(64, 32)
    kernel, parameters = _cuda.Kernel("stores", "stored", LAYOUT, 64), (encode(y, (64, 32), 0), y.data_ptr(), 0, 0, 7)
    with emulated(csrc=csrc):
        kernel.launch((1, 1), 227 << 10, y.device, *parameters)
        with pytest.raises(MemoryFault, match="no GPU launches a block of that many threads or bytes"):
            kernel.launch((1, 1), (227 << 10) + 16, y.device, *parameters)


def test_sums_of_16_bits_are_not_followed(csrc):
    x = torch.zeros(64, 64).bfloat16()
    with pytest.raises(MemoryFault, match="adds to a tensor whose elements are no float32"):
        launch("summed", aligned(64, 32), encode(x, (64, 64), 0), csrc)


@pytest.mark.parametrize("swizzle", [0, 128])
@pytest.mark.parametrize("at", [0, 1, -3, 5])
def test_a_box_of_three_dimensions(at, swizzle, csrc):
    """What lies outside is left out; 16 bytes of a row are read where the swizzle has them."""
    y = aligned(6, 12, 48).fill_(-1)
    launch("box", y, encode(y, (4, 16, 32), swizzle), csrc, at=at)
    rows = torch.arange(7.0, 2055).reshape(64, 8, 4)
    if swizzle:
        chunks = torch.arange(8)[None] ^ (torch.arange(64) % 8)[:, None]
        rows = rows.gather(1, chunks[..., None].expand(-1, -1, 4))
    around = torch.full((6 + 32, 12 + 32, 48 + 64), -1.0)
    around[16 + at + 1 :, 16 + at - 1 :, 32 + at :][:4, :16, :32] = rows.reshape(4, 16, 32)
    assert torch.equal(y, around[16:22, 16:28, 32:80])


def test_instructions(csrc, tmp_path, monkeypatch):
    """What NVRTC makes of them for Hopper."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    from bench.sm90 import machine

    text = (csrc / "cuda" / "stores.cu").read_text()
    folder = tmp_path / "csrc"
    (folder / "cuda").mkdir(parents=True)
    (folder / "include").symlink_to(_cuda.sources() / "include")
    kernels = re.split(r"(?=AFN_KERNEL)", text)
    wanted = [one for one in kernels if re.match(r"AFN_KERNEL\((box|two_groups|summed|summed_by_lines|in_turn),", one)]
    (folder / "cuda" / "stores.cu").write_text(kernels[0] + "".join(wanted))
    monkeypatch.setattr(_cuda, "sources", lambda: folder)
    code = machine.dumped(_cuda.compile_now("stores", (9, 0))[0], "-sass")
    functions = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    assert len(functions) == len(wanted) == 5
    for name, instruction in {
        "box": "UTMASTG.3D", "two_groups": "UBLKCP", "summed": "UTMAREDG.2D.ADD", "summed_by_lines": "UBLKRED",
        "in_turn": "STRONG.GPU",
    }.items():  # fmt: skip
        assert instruction in functions[name], (name, functions[name])
        assert "UTMACMDFLUSH" in functions[name]
        assert "DEPBAR" in functions[name]
