"""Launches of csrc/cuda that were kept in a file, run again with nothing but CUDA's bindings: for compute-sanitizer.

    compute-sanitizer --tool memcheck python bench/first/harness.py FILE.npz FOLDER_OF_FATBINS

Prints a line of JSON for each launch: how far what it wrote is from what the kernels compiled for the host had written.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

FLOATS = {"float32": np.float32, "float16": np.float16, "float64": np.float64}


class Machine(Protocol):
    """What launches run on."""

    def buffer(self, before: np.ndarray | None, size: int) -> int:
        """The address of new memory with these bytes; without them nobody has written it."""
        ...

    def tensor_map(self, address: int, about: dict) -> bytes:
        """A map of the memory there, of element size, swizzle, sizes, box and strides as kept."""
        ...

    def launch(self, about: dict, parameters: bytes) -> None: ...

    def read(self, address: int, size: int) -> np.ndarray: ...


class GPU:
    """The first GPU, through the driver."""

    def __init__(self, binaries: Path):
        from cuda.bindings import driver

        self.driver, self.binaries, self.libraries = driver, binaries, {}
        self.done(driver.cuInit(0))
        self.done(driver.cuCtxSetCurrent(self.done(driver.cuDevicePrimaryCtxRetain(0))))

    def done(self, answer: tuple):
        if answer[0]:
            raise RuntimeError(self.driver.cuGetErrorString(answer[0])[1].decode())
        return answer[1] if len(answer) > 1 else None

    def buffer(self, before: np.ndarray | None, size: int) -> int:
        address = self.done(self.driver.cuMemAlloc(max(size, 1)))
        if before is not None and size:
            self.done(self.driver.cuMemcpyHtoD(address, before.ctypes.data, size))
        return int(address)

    def tensor_map(self, address: int, about: dict) -> bytes:
        driver, rank = self.driver, len(about["sizes"])
        types = {1: "UINT8", 2: "BFLOAT16", 4: "FLOAT32"}  # copies ask for the size alone, sums are of float32
        made = self.done(driver.cuTensorMapEncodeTiled(
            getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{types[about['element']]}"), rank, address,
            *([driver.cuuint64_t(n) for n in about[name]] for name in ("sizes", "strides")),
            [driver.cuuint32_t(n) for n in about["box"]], [driver.cuuint32_t(1)] * rank,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle((0, 32, 64, 128).index(about["swizzle"])),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))  # fmt: skip
        return ctypes.string_at(int(made.getPtr()), 128)

    def launch(self, about: dict, parameters: bytes) -> None:
        driver, source = self.driver, about["source"]
        if source not in self.libraries:
            code = (self.binaries / f"{source}.fatbin").read_bytes()
            self.libraries[source] = self.done(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
        kernel = self.done(driver.cuLibraryGetKernel(self.libraries[source], about["kernel"].encode()))
        function = self.done(driver.cuKernelGetFunction(kernel))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.done(driver.cuFuncSetAttribute(function, attribute, about["shared"]))
        room = ctypes.create_string_buffer(parameters, len(parameters))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(room))
        x, y = about["grid"]
        self.done(driver.cuLaunchKernel(function, x, y, 1, about["threads"], 1, 1, about["shared"], 0,
                                        ctypes.addressof(pointers), 0))  # fmt: skip
        self.done(driver.cuCtxSynchronize())

    def read(self, address: int, size: int) -> np.ndarray:
        found = np.empty(size, np.uint8)
        if size:
            self.done(self.driver.cuMemcpyDtoH(found.ctypes.data, address, size))
        return found


def values(data: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes as numbers."""
    if dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(FLOATS.get(dtype, np.uint8))


def apart(found: np.ndarray, expected: np.ndarray, dtype: str) -> float:
    """The largest difference from the finite expected values, as a share of the largest; infinite where it has none."""
    with np.errstate(invalid="ignore"):
        a, b = values(found, dtype).astype(np.float64), values(expected, dtype).astype(np.float64)
        finite = np.isfinite(b)
        if not np.isfinite(a[finite]).all():
            return float("inf")
        most = np.abs(b[finite]).max(initial=0.0)
        return float(np.abs(a - b)[finite].max(initial=0.0) / (most or 1.0))


def run(machine: Machine, file: Path) -> list[dict]:
    """Every launch of a file in its order, each with buffers of its own."""
    kept, lines = np.load(file), []
    for number, about in enumerate(json.loads(str(kept["about"]))):
        addresses = []
        for name, one in about["buffers"].items():
            before = None if one["unwritten"] else kept[f"{number}.{name}.before"]
            addresses.append(machine.buffer(before, one["size"]))
        parameters = bytearray(kept[f"{number}.parameters"].tobytes())
        for place, buffer, offset in about["pointers"]:
            parameters[place : place + 8] = (addresses[buffer] + offset).to_bytes(8, "little")
        for place, buffer, offset, what in about["maps"]:
            parameters[place : place + 128] = machine.tensor_map(addresses[buffer] + offset, what)
        machine.launch(about, bytes(parameters))
        written = {}
        for (name, one), address in zip(about["buffers"].items(), addresses, strict=True):
            if one["result"]:
                found = machine.read(address, one["size"])
                written[f"{name} {one['dtype']}"] = apart(found, kept[f"{number}.{name}.after"], one["dtype"])
        finite = all(x != float("inf") for x in written.values())
        written = {name: x if x != float("inf") else None for name, x in written.items()}
        status = "ok" if finite else "failed"
        lines.append({"kernel": about["kernel"], "grid": about["grid"], "status": status, "written": written})
    return lines


def main() -> None:
    file, binaries = map(Path, sys.argv[1:3])
    for line in run(GPU(binaries), file):
        print(json.dumps({"kind": "launch", **line}), flush=True)


if __name__ == "__main__":
    main()
