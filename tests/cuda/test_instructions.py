"""The instructions of hopper.cuh as text: operands that a compiler takes in any order, but a GPU does not."""

import re
from pathlib import Path

import pytest

from afn_kernels import _cuda
from tests.cuda import compiler, run_compiler

WIDTHS = (32, 64, 80, 96, 128, 160, 176, 192, 256)
HEADER = _cuda.sources() / "include" / "afn" / "hopper.cuh"
ASM = re.compile(r"asm volatile\(((?:\s*\"[^\"]*\")+)\s*:\s*(.*?)\s*:\s*(.*?)\);", re.DOTALL)


@pytest.mark.skipif(not compiler(), reason="no C++ compiler")
def test_products_name_their_operands_in_order():
    """d's registers first to last, each once; then a and b, whether there is more, and which is transposed."""
    text = run_compiler("-E", "-P", "-D__CUDACC_RTC__", "-x", "c++", str(HEADER))
    found = {}
    for strings, outputs, inputs in ASM.findall(text):
        code = "".join(re.findall(r'"([^"]*)"', strings)).replace("\\n", "\n")
        shape = re.search(r"m64n(\d+)k(16|32)\.f32\.(bf16|f16|e4m3)\.\3 \{([%\d, ]+)\}, (\{?)", code)
        if not shape:
            continue
        n, k, number, registers, from_registers = shape.groups()
        count = int(n) // 2
        assert registers == ", ".join(f"%{i}" for i in range(count)), code
        indices = [eval(i, {}) for i in re.findall(r'"\+f"\(d\[([\d+ ]+)\]\)', outputs)]
        assert indices == list(range(count)), outputs
        a = [f'"r"(a[{i}])' for i in range(4)] if from_registers else ['"l"(a)']
        turned = [] if number == "e4m3" else ['"n"(tb)'] if from_registers else ['"n"(ta)', '"n"(tb)']
        assert re.split(r",\s*", inputs) == [*a, '"l"(b)', '"r"(int{more})', *turned], inputs
        names = [f"%{count + i}" for i in range(len(a) + 2 + len(turned))]
        first = f"{{{', '.join(names[:4])}}}" if from_registers else names[0]
        rest = f"{first}, {names[len(a)]}, p, 1, 1{''.join(f', {name}' for name in names[len(a) + 2 :])};"
        assert code.partition(registers + "}, ")[2].strip() == rest + "\n}", code
        assert f"setp.ne.b32 p, {names[len(a) + 1]}, 0;" in code, code
        assert k == ("32" if number == "e4m3" else "16")
        found[number, int(n), bool(from_registers)] = True
    numbers = ("bf16", "f16", "e4m3")
    assert set(found) == {(number, n, a) for number in numbers for n in WIDTHS for a in (False, True)}


KERNELS = """#include "afn/hopper.cuh"
namespace afn {
struct P { float* y; };
template <Number number, int N> AFN_DEVICE void all(const P& p) {
    float d[N / 2];
    uint32_t a[4] = {1, 2, 3, 4};
    uint64_t s = descriptor(shared_memory(), 16, 1024, Swizzle::bytes_128);
    wgmma_fence();
    wgmma<number, N>(d, s, s, false);
    wgmma<number, N>(d, a, s);
    if constexpr (number != Number::e4m3) {
        wgmma<number, N, Major::mn, Major::mn>(d, s, s);
        wgmma<number, N, Major::mn>(d, a, s);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; ++i) p.y[i * 128 + thread_index()] = d[i];
}
}
"""


@pytest.mark.slow
def test_every_product_is_one_instruction(tmp_path, monkeypatch):
    """As NVRTC and its assembler have it."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    from bench.sm90 import machine

    folder: Path = tmp_path / "csrc"
    (folder / "cuda").mkdir(parents=True)
    (folder / "include").symlink_to(_cuda.sources() / "include")
    text = KERNELS
    for number, widths in (("bf16", WIDTHS), ("f16", (80,)), ("e4m3", WIDTHS)):
        for n in widths:
            text += f"AFN_KERNEL({number}_{n}, afn::P, 128, 1) {{ afn::all<afn::Number::{number}, {n}>(p); }}\n"
    (folder / "cuda" / "all.cu").write_text(text)
    monkeypatch.setattr(_cuda, "sources", lambda: folder)
    code = machine.dumped(_cuda.compile_now("all", (9, 0))[0], "-sass")
    functions = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    assert len(functions) == 1 + 2 * len(WIDTHS)
    for name, listing in functions.items():
        number, n = name.split("_")
        kind, k, count = ("QGMMA", 32, 2) if number == "e4m3" else ("HGMMA", 16, 4)
        assert len(re.findall(rf"{kind}\.64x{n}x{k}\.F32", listing)) == count, (name, listing)
