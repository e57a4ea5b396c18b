"""Launches of csrc/cuda: kept while the kernels, compiled for the host, run small calls; run again under a checker."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import afn_kernels as ak
from afn_kernels import _cuda, _tensor_map
from bench.first import harness
from bench.first.child import DEVICE, left, output, program, say
from bench.first.plan import SOURCES, TOOLS

HERE = Path(__file__).parents[2]
PLACE = _cuda.PACKAGE / "launches"  # beside the machine code, so that it is carried with it
MOST = 32 << 20  # bytes of a buffer


def qkv_rotary() -> list[Tensor]:
    """Three tokens into slots of a cache, with a bias."""
    g = torch.Generator().manual_seed(0)
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        qkv = torch.randn(3, 8 * 128, generator=g).to(dtype)  # four query heads, two of keys, two of values
        caches = [torch.zeros(8, 2, 128, dtype=dtype) for _ in range(2)]
        bias = torch.randn(8 * 128 + 2, generator=g).to(dtype)[2:]  # begins within its memory
        slots, positions = torch.tensor([5, 0, 3]), torch.tensor([0.0, 7.0, 3.0])
        rotation = (positions, torch.rand(64, generator=g))
        found.append(ak.qkv_rotary(qkv, *rotation, *caches, slots, bias=bias, impl="cuda"))
    return found


def calls(source: str) -> list[Callable[[], object]]:
    """Small calls of a source's kernels."""
    from tests.cuda.cases import CASES

    return list(CASES[source]) if source in CASES else [qkv_rotary]


class Keeper:
    """What a launch reads and writes, before and after it has run on the host."""

    def __init__(self):
        self.about: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.unwritten: dict[int, Tensor] = {}  # alive, so that nobody else has the address

    def __call__(self, kernel: _cuda.Kernel, grid: tuple[int, int], shared: int, parameters: bytes) -> None:
        from tests import cuda

        number, buffers, pointers, maps, storages = len(self.about), {}, [], [], {}
        for place, address, about in _addresses(kernel, parameters):
            owner = _owner(address)
            base, size = owner.untyped_storage().data_ptr(), owner.untyped_storage().nbytes()
            if base not in storages:
                unwritten = base in self.unwritten
                storages[base] = (len(storages), owner)
                buffers[str(storages[base][0])] = {
                    "size": size, "dtype": str(owner.dtype).removeprefix("torch."), "unwritten": unwritten,
                }  # fmt: skip
                if unwritten:
                    ctypes.memset(base, 0xFF, size)  # not a number, wherever the launch does not write
                else:
                    self.arrays[f"{number}.{storages[base][0]}.before"] = _bytes(owner)
            if about:
                maps.append((place, storages[base][0], address - base, about))
            else:
                pointers.append((place, storages[base][0], address - base))
        before = {name: self.arrays.get(f"{number}.{name}.before") for name in buffers}
        cuda.run(kernel, grid, shared, parameters)
        for index, owner in storages.values():
            after, was = _bytes(owner), before[str(index)]
            dtype = str(owner.dtype).removeprefix("torch.")
            # Scratch memory that is written in part is not read: initcheck would say so.
            whole = was is not None or bool(np.isfinite(harness.values(after, dtype).astype(np.float64)).all())
            changed = whole and (was is None or not np.array_equal(after, was))
            buffers[str(index)]["result"] = changed and owner.dtype.is_floating_point and owner.dtype.itemsize > 1
            if buffers[str(index)]["result"]:
                self.arrays[f"{number}.{index}.after"] = after
        self.arrays[f"{number}.parameters"] = np.frombuffer(parameters, np.uint8)
        self.about.append({"source": kernel.source, "kernel": kernel.name, "threads": kernel.threads, "grid": grid,
                           "shared": shared, "pointers": pointers, "maps": maps, "buffers": buffers})  # fmt: skip
        self.unwritten.clear()

    def empty(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """torch.empty, whose memory nobody has written."""

        def made(*args, **kwargs) -> Tensor:
            x = make(*args, **kwargs)
            if x.device.type == "cpu" and x.numel():
                self.unwritten[x.untyped_storage().data_ptr()] = x
            return x

        return made


def _parts(kernel: _cuda.Kernel) -> Iterator[tuple[int, str]]:
    """(place, kind) of each of a launch's parameters; a tensor map is "128s"."""
    each = re.findall(r"(\d*)([A-Za-z])", kernel.layout.format.removesuffix("0P"))
    kinds = [x for count, kind in each for x in ([count + kind] if kind in "sx" else [kind] * int(count or 1))]
    for at, kind in enumerate(kinds):
        yield struct.calcsize("@" + "".join(kinds[: at + 1])) - struct.calcsize(f"@{kind}"), kind


def _addresses(kernel: _cuda.Kernel, parameters: bytes) -> Iterator[tuple[int, int, dict | None]]:
    """(place, address, None) of every pointer among a launch's parameters; of tensor maps what they say, too."""
    from tests.cuda import tensor_map

    for place, kind in _parts(kernel):
        if kind == "P" and (address := struct.unpack_from("@P", parameters, place)[0]):
            yield place, address, None
        if kind == "128s" and (found := tensor_map.unpacked(parameters[place : place + 128])):
            yield place, *found


def _owner(address: int) -> Tensor:
    """The tensor whose memory an address is in."""
    for x in gc.get_objects():
        if issubclass(type(x), Tensor) and x.device.type == "cpu" and x.layout == torch.strided:
            storage = x.untyped_storage()
            if storage.data_ptr() <= address < storage.data_ptr() + storage.nbytes():
                return x
    raise LookupError(f"no tensor is at {address:#x}")


def _bytes(x: Tensor) -> np.ndarray:
    storage = x.untyped_storage()
    if storage.nbytes() > MOST:
        raise ValueError(f"a buffer has {storage.nbytes()} bytes, more than {MOST}: keep a smaller call")
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().copy()


@contextmanager
def keeping() -> Iterator[Keeper]:
    """Within it, calls with impl="cuda" run on the host and are kept."""
    from tests.cuda import tensor_map

    keeper, before, empty = Keeper(), (_cuda.emulator, _tensor_map.emulator), torch.empty
    _cuda.emulator, _tensor_map.emulator, torch.empty = keeper, tensor_map.encode, keeper.empty(empty)
    try:
        yield keeper
    finally:
        (_cuda.emulator, _tensor_map.emulator), torch.empty = before, empty


def state(source: str) -> str:
    """A hash of all that decides what is kept."""
    files = [*_cuda._files(source), *sorted((HERE / "tests" / "cuda").glob("*.py")), Path(__file__)]
    files += sorted((HERE / "afn_kernels").glob("*/cuda*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def file_of(source: str) -> Path:
    return PLACE / f"{source}-{state(source)}.npz"


def launches() -> None:
    """Keeps what is not kept yet."""
    for source in SOURCES:
        if file_of(source).exists():
            say("launches", source=source, status="ok", why="kept before")
            continue
        with keeping() as keeper:
            for call in calls(source):
                call()
        PLACE.mkdir(parents=True, exist_ok=True)
        for old in PLACE.glob(f"{source}-*.npz"):
            old.unlink()
        np.savez_compressed(file_of(source), about=json.dumps(keeper.about), **keeper.arrays)
        say("launches", source=source, status="ok", why="", launches=len(keeper.about))


class Host:
    """Kernels compiled for the host, in the place of a GPU."""

    def __init__(self):
        self.kept: list[np.ndarray] = []

    def buffer(self, before: np.ndarray | None, size: int) -> int:
        room = np.full(size + 128, 0xFF, np.uint8)  # what nobody has written is not a number
        start = -room.ctypes.data % 128
        if before is not None:
            room[start : start + size] = before
        self.kept.append(room)
        return room.ctypes.data + start

    def launch(self, about: dict, parameters: bytes) -> None:
        from tests import cuda

        kernel = _cuda.Kernel(about["source"], about["kernel"], "", about["threads"])
        cuda.run(kernel, tuple(about["grid"]), about["shared"], parameters)

    def tensor_map(self, address: int, about: dict) -> bytes:
        from tests.cuda.tensor_map import packed

        return packed(address, about)

    def read(self, address: int, size: int) -> np.ndarray:
        (room,) = (x for x in self.kept if x.ctypes.data <= address < x.ctypes.data + len(x))
        start = address - room.ctypes.data
        return room[start : start + size].copy()


def sanitised(tool: str, source: str) -> None:
    """A source's launches under one of NVIDIA's checkers; on a CPU on the host, under none."""
    common = {"tool": tool, "source": source}
    file = file_of(source)
    if not file.exists():
        say("sanitised", **common, status="skipped", why="no launches are kept")
        return
    if DEVICE == "cpu":
        for line in harness.run(Host(), file):
            say("launch", **common, **line)
        say("sanitised", **common, status="rehearsed", why="on the host, under no checker")
        return
    tool_path = program("compute-sanitizer")
    if not tool_path:
        say("sanitised", **common, status="skipped", why="compute-sanitizer is not here")
        return
    if not (_cuda.PACKAGE / f"{source}.fatbin").exists() or _cuda.stale(source):
        say("sanitised", **common, status="skipped", why="no machine code of this source: build it with nvcc")
        return
    words = output([tool_path, "--help"], 10, HERE)
    number = TOOLS.index(tool) * len(SOURCES) + SOURCES.index(source)
    command = [tool_path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5", *apart(words[0], number),
               sys.executable, harness.__file__, str(file), str(_cuda.PACKAGE)]  # fmt: skip
    out, err, code = output(command, left(3.0), HERE)
    for line in out.splitlines():
        if line.startswith("{") and line.endswith("}"):
            say("launch", **common, **{k: v for k, v in json.loads(line).items() if k != "kind"})
    status, why = judged(out + err, -9 if code is None else code)
    if code is None and status == "failed" and "findings:" not in why:
        status = "timed out"  # which says nothing of the kernel
    say("sanitised", **common, status=status, why=why)


def apart(words: str, number: int) -> list[str]:
    """Options by which checkers that run at the same time use other ports and wait for a slow start, of those in the
    tool's own help: it has ten ports and ten seconds otherwise."""
    wanted = {"--base-port": 49152 + 64 * number, "--port": 49152 + 64 * number, "--max-connections": 64,
              "--launch-timeout": 40}  # fmt: skip
    there = set(re.findall(r"--[a-z-]+", words))
    return [word for name, value in wanted.items() if name in there for word in (name, str(value))]


def judged(text: str, code: int) -> tuple[str, str]:
    """What a checker found, from what it has printed."""
    summary = re.search(r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards?", text)
    marked = [line.strip("= \t") for line in text.splitlines() if line.startswith("=========")]
    findings = [line for line in marked if line and not line.startswith(("COMPUTE-SANITIZER", "ERROR SUMMARY"))]
    said = "; ".join(findings[:4])[:600]
    count = next((int(x) for x in summary.groups() if x is not None), 0) if summary else None
    if count:
        return "failed", f"{count} findings: {said}"
    if code == 0 and count == 0:
        return "ok", ""
    last = text.strip().splitlines()[-1:] or [""]
    return "failed", f"it ended with {code} and no summary: {said or last[0][:300]}"
