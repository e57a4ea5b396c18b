"""What this machine has, which implementation of every op would run and why, and how to get what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import afn_kernels as ak
from afn_kernels import _cuda, _verdicts, cpu
from afn_model.cli.messages import MODEL, install_extra

PACKAGES = ("torch", "torchaudio", "triton", "transformers", "tokenizers", "safetensors", "numpy", "av")
COMPILERS = ("c++", "cmake", "ninja", "nvcc")


def examine() -> dict[str, Any]:
    """Everything ``afn doctor`` says, as plain data.

    Returns:
        versions, devices, compilers (None where there is none), extension (built, detail, simd), cuda_kernels (sources,
        binaries, detail), verified (the file of what ``ak.verify`` found, or ""), ops (chosen and the rows of
        ``ak.explain``), and missing: what, why it matters and the command that provides it.
    """
    compilers = {name: compiler(name) for name in COMPILERS}
    extension = compiled_extension()
    return {
        "versions": versions(),
        "devices": devices(),
        "compilers": compilers,
        "extension": extension,
        "cuda_kernels": cuda_kernels(),
        "verified": findings(),
        "ops": {name: explained(name) for name in sorted(ak.OPS)},
        "missing": missing(compilers, extension),
    }


def verified() -> Any:
    """Runs ``ak.verify``, with a line for every check where somebody watches."""
    return ak.verify(progress=sys.stderr.isatty())


def findings() -> str:
    """The file that ``impl="auto"`` follows on this device, or ""."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return str(_verdicts.path(device)) if _verdicts.of(-1 if device.type == "cpu" else device.index) else ""


def versions() -> dict[str, str]:
    found = {"afn": ak.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    if importlib.util.find_spec("soundfile") is None:
        return found
    import soundfile

    return found | {"soundfile": soundfile.__version__, "libsndfile": soundfile.__libsndfile_version__}


def devices() -> dict[str, Any]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        architecture = f"sm_{properties.major}{properties.minor}"
        memory = round(properties.total_memory / 2**30, 1)
        gpus.append({"name": properties.name, "architecture": architecture, "memory_gib": memory})
    cpu = {
        "model": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_simd": torch.backends.cpu.get_cpu_capability(),
    }
    return {"cpu": cpu, "gpus": gpus}


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def compiler(name: str) -> str | None:
    """Path and version line of a tool, looked for beside this Python first; None where there is none."""
    path = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d+\.\d+", line)]
    return f"{path}: {lines[0].strip()}" if lines else path


def compiled_extension() -> dict[str, Any]:
    if reason := cpu.available():
        return {"built": False, "detail": reason, "simd": []}
    _cpu = importlib.import_module("afn_kernels._cpu")
    return {"built": True, "detail": _cpu.__file__, "simd": list(_cpu.simd_levels())}


def cuda_kernels() -> dict[str, Any]:
    """Which CUDA kernels this installation has as machine code, and which as sources alone."""
    sources, binaries = _cuda.shipped()
    detail = f"machine code for sm_90a, PTX for other GPUs: {', '.join(binaries)}" if binaries else ""
    if later := [name for name in sources if name not in binaries]:
        why = cpu.not_built("cuda")
        only = f"sources{f' ({why})' if why else ''}, which NVRTC compiles at their first use: {', '.join(later)}"
        detail = "; ".join(filter(None, (detail, only)))
    return {"sources": sources, "binaries": binaries, "detail": detail}


def explained(op: str) -> dict[str, Any]:
    found = ak.explain(op)
    rows = [{"impl": row.impl, "status": row.status, "reason": row.reason} for row in found.rows]
    return {"chosen": found.chosen, "rows": rows}


def missing(compilers: dict[str, str | None], extension: dict[str, Any]) -> list[dict[str, str]]:
    """What would make more work, each with one command."""
    found = []

    def add(what: str, why: str, fix: str) -> None:
        found.append({"what": what, "why": why, "fix": fix})

    if not extension["built"]:
        prepare = "sudo apt-get install -y g++ && " if compilers["c++"] is None else ""
        why = f"log_mel, resampling and packing run uncompiled, several times slower ({extension['detail']})"
        add("compiled extension", why, prepare + cpu.install_command())
    reason, _, fix = _cuda.available().rpartition(": ")
    if torch.cuda.is_available() and "missing" in reason:
        add("CUDA kernels", reason, fix)
    lacking = [module for module in MODEL if importlib.util.find_spec(module) is None]
    if lacking:
        add(", ".join(lacking), "afn_model does not run", install_extra("model"))
    for package, why in (
        ("espeakng_loader", "afn demo has no voices"),
        ("matplotlib", "afn demo draws no loss curves"),
    ):
        if importlib.util.find_spec(package) is None:
            add(package, why, install_extra("demo"))
    return found


def text(report: dict[str, Any]) -> str:
    """The report as lines to read."""
    cpu, gpus = report["devices"]["cpu"], report["devices"]["gpus"]
    extension = report["extension"]
    lines = ["versions"]
    lines += [f"  {name:<13}{version}" for name, version in report["versions"].items()]
    lines += [
        "devices",
        f"  {'cpu':<13}{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads, {cpu['torch_simd']}",
    ]
    lines += [f"  {'gpu':<13}{gpu['name']}, {gpu['architecture']}, {gpu['memory_gib']} GiB" for gpu in gpus]
    lines += [] if gpus else [f"  {'gpu':<13}none that PyTorch can use"]
    lines += ["compilers"]
    lines += [f"  {name:<13}{found or 'absent'}" for name, found in report["compilers"].items()]
    lines += ["compiled extension", f"  {'cpu':<13}{extension['detail']}"]
    lines += [f"  {'simd':<13}{', '.join(extension['simd'])} (fastest first)"] if extension["built"] else []
    lines += [f"  {'cuda':<13}{report['cuda_kernels']['detail']}"]
    lines += ["ops", f"  {report['verified'] or 'not verified on this device: afn doctor --verify'}"]
    for name, op in report["ops"].items():
        lines.append(f"  {name}: {op['chosen'] or 'nothing can run it'}")
        lines += [f"    {row['impl']:<11}{row['status']:<13}{row['reason']}" for row in op["rows"]]
    lines.append("missing" if report["missing"] else "nothing is missing")
    for item in report["missing"]:
        lines += [f"  {item['what']}: {item['why']}", f"    {item['fix']}"]
    return "\n".join(lines)
