"""What ``afn_kernels.verify`` found on this device, as ``impl="auto"`` reads it, and what failed in this process.

Findings are kept in ``$AFN_CACHE/verdicts`` (else ``$XDG_CACHE_HOME/afn_kernels``, else ``~/.cache/afn_kernels``), one
file for each device, driver, torch, triton and state of this library: a change of any of them asks for a new run.
``AFN_VERDICTS=0`` in the environment ignores them. Importing this module reads nothing and touches no device.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from afn_kernels import _versions

Rows = list[dict[str, Any]]
FORMAT = 1
NEAR = 2  # octaves of elements around a measured size, in which the nearest measured one counts
TIED = 1.03  # no measurement tells two apart that are nearer than that
SIZED_BY = {"decode_attention": 1}  # the argument whose elements are an op's size, where it is not the first


@dataclass(frozen=True)
class Verdicts:
    """Of one device.

    Args:
        failed: op to implementation to what is wrong with it.
        order: op to kind of call (``kind``) to octave of its size to the implementations measured there, fastest first.
        seconds: the same to what each took.
    """

    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    order: dict[str, dict[str, dict[int, tuple[str, ...]]]] = field(default_factory=dict)
    seconds: dict[str, dict[str, dict[int, dict[str, float]]]] = field(default_factory=dict)

    def fastest(self, op: str, args: tuple, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """The implementations measured for such a call, fastest first; none where nothing like it was measured."""
        if op not in self.order:
            return ()
        return self.order[op].get(kind(op, args, kwargs), {}).get(octave(op, args), ())


def octave(op: str, args: tuple) -> int:
    """The size of a call: bits of its number of elements."""
    return args[SIZED_BY.get(op, 0)].numel().bit_length()


def kind(op: str, args: tuple, kwargs: Mapping[str, Any], backward: bool | None = None) -> str:
    """What else decides which implementation is fastest, in words."""
    x = args[0]
    if backward is None:
        backward = torch.is_grad_enabled() and _any_requires_grad(args)
    if op == "attention":
        return _words(x.dtype, backward, x.shape[-1], kwargs.get("cu_seqlens_q") is None, bool(kwargs.get("causal")))
    if op == "decode_attention":
        return _words(x.dtype, backward, args[1].dtype, kwargs.get("block_table") is None)
    if op == "linear_fp8":
        return f"{_words(x.dtype, backward)} {_scales(args[1], args[3])} {kwargs['out_dtype']}".replace("torch.", "")
    return _words(x.dtype, backward)


def _scales(w: torch.Tensor, scale: torch.Tensor) -> str:
    """What of a weight shares a scale."""
    if not scale.dim():
        return "tensor"
    return "row" if scale.shape[1] == 1 else "blocks" if len(scale) == len(w) else "tiles"


def _any_requires_grad(args: tuple) -> bool:
    for x in args:  # noqa: SIM110  half the time of any(...)
        if isinstance(x, torch.Tensor) and x.requires_grad:
            return True
    return False


@lru_cache
def _words(dtype: torch.dtype, backward: bool, *more) -> str:
    words = [str(dtype).removeprefix("torch."), "with backward" if backward else "forward"]
    if len(more) == 3:
        words += [str(more[0]), "one" if more[1] else "packed", "causal" if more[2] else "full"]
    elif more:
        words += [str(more[0]).removeprefix("torch."), "rows" if more[1] else "pages"]
    return " ".join(words)


# By index of the device, −1 for the CPU; None where there is no file of it.
READ: dict[int, Verdicts | None] = {}
_LOCK = threading.Lock()


def of(index: int) -> Verdicts | None:
    """What was found on a device, read once in a process."""
    if index not in READ:
        with _LOCK:
            if index not in READ:
                READ[index] = _load(index)
    return READ[index]


def forget() -> None:
    """Files are read again at the next call, and what failed in this process is tried again."""
    READ.clear()
    ASIDE.clear()
    _said.clear()


def _load(index: int) -> Verdicts | None:
    if os.environ.get("AFN_VERDICTS") == "0" or not _any_file():
        return None
    if index >= 0 and not torch.cuda.is_available():  # fake tensors of a GPU that is not here
        return None
    device = torch.device("cuda", index) if index >= 0 else torch.device("cpu")
    rows = read(device)
    return digest(rows) if rows else None


def _any_file() -> bool:
    try:
        return any(file.suffix == ".json" for file in folder().iterdir())
    except OSError:
        return False


def folder() -> Path:
    """Where findings are kept.

    Raises:
        FileNotFoundError: nobody says where, and this user has no home.
    """
    if os.environ.get("AFN_CACHE"):
        return Path(os.environ["AFN_CACHE"]) / "verdicts"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afn_kernels" / "verdicts"
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} AFN_CACHE and XDG_CACHE_HOME name no folder either") from None


def key(device: torch.device) -> dict[str, str]:
    """Everything that a finding depends on."""
    if device.type == "cuda":
        name, driver = torch.cuda.get_device_name(device), _driver()
    else:
        name, driver = _processor(), f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "triton": _versions.installed("triton"),
        "library": library(),
    }


def _driver() -> str:
    with suppress(OSError):
        if found := re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")):
            return found[0]
    return str(torch._C._cuda_getDriverVersion())


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return "cpu"


@lru_cache
def library() -> str:
    """A hash of this library's sources, and of the sizes of what was compiled from them."""
    package = Path(__file__).parent
    sources = package.parent / "csrc"
    files = [*package.rglob("*.py"), *(x for x in sources.rglob("*") if x.suffix in (".cu", ".cuh", ".cpp", ".h"))]
    found = hashlib.sha256()
    for file in sorted(files):
        with suppress(OSError):  # an editor's lock is a link to nowhere
            source = file.read_bytes()
            found.update(file.as_posix().removeprefix(package.parent.as_posix()).encode("utf-8", "surrogateescape"))
            found.update(source)
    for file in sorted([*package.glob("_cpu*.so"), *package.glob("_binaries/*.fatbin")]):
        with suppress(OSError):
            found.update(f"{file.name} {file.stat().st_size}".encode())
    return found.hexdigest()[:16]


def path(device: torch.device) -> Path:
    """The file of a device's findings."""
    found = key(device)
    name = re.sub(r"\W+", "-", found["device"]).strip("-").lower()[:40]
    return folder() / f"{name}-{hashlib.sha256(repr(found).encode()).hexdigest()[:16]}.json"


def read(device: torch.device) -> Rows:
    """The rows that were kept for a device as it is now; none where there are none, or no file that can be read."""
    try:
        file = path(device)
        written = file.read_bytes()
    except OSError:
        return []
    try:
        found = json.loads(written.decode())
        rows, mine = found["rows"], found["key"] == key(device)
        if found["format"] != FORMAT or not all(isinstance(row["op"], str) and row["status"] for row in rows):
            raise ValueError("another format")
        {_identity(row) for row in rows}  # can be told apart
        digest(rows)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        warnings.warn(f"{file} cannot be used ({type(error).__name__}: {error}); afn doctor --verify makes a new one",
                      stacklevel=2)  # fmt: skip
        return []
    return rows if mine else []


def keep(device: torch.device, rows: Iterable[dict[str, Any]]) -> Path:
    """Adds rows to the file of a device, in place of those of the same checks; written whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    fresh = [row for row in rows if row["status"] != "unsupported"]
    file = path(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.with_suffix(".lock")), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file that cannot be read is replaced
        replaced = {_identity(row) for row in fresh}
        both = [*(row for row in read(device) if _identity(row) not in replaced), *fresh]
        text = json.dumps({"format": FORMAT, "key": key(device), "rows": both}, indent=1)
        part = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    READ.clear()
    return file


def _identity(row: Mapping[str, Any]) -> tuple:
    return row["op"], row.get("impl"), row.get("check"), row.get("size"), row["status"] == "timed"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time where the system has locks; elsewhere the last one wins, and its file is whole too."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(file, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def digest(rows: Rows) -> Verdicts:
    """Rows of ``afn_kernels.verify`` as ``impl="auto"`` asks for them."""
    found = Verdicts()
    for row in rows:
        if row["status"] == "failed":
            found.failed.setdefault(row["op"], {}).setdefault(row["impl"], f"{row['check']}: {row['reason']}")
        elif row["status"] == "timed":
            for what, seconds in row["seconds"].items():
                sizes = found.seconds.setdefault(row["op"], {}).setdefault(what, {})
                if not 0 <= row["octave"] <= 64:
                    raise ValueError(f"a call of 2^{row['octave']} elements")
                sizes[int(row["octave"])] = {name: _seconds(x) for name, x in seconds.items()}
    for op, kinds in found.seconds.items():
        for what, sizes in kinds.items():
            found.order.setdefault(op, {})[what] = dict(_ranked(sizes))
    return found


def _seconds(x: float) -> float:
    if not 0 < float(x) < math.inf:
        raise ValueError(f"{x} seconds")
    return float(x)


def nearest(sizes: Iterable[int], size: int) -> int:
    """The measured size that counts for another; the smaller of two that are as near."""
    return min(sizes, key=lambda x: (abs(x - size), x))


def _ranked(sizes: dict[int, dict[str, float]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for size in range(min(sizes) - NEAR, max(sizes) + NEAR + 1):
        measured = nearest(sizes, size)
        if abs(measured - size) > NEAR:
            continue
        left, names = dict(sizes[measured]), []
        while left:  # of those that are tied with the fastest, the table's first
            least = min(left.values())
            names.append(next(name for name, x in left.items() if x <= TIED * least))
            del left[names[-1]]
        yield size, tuple(names)


# What raised in this process: op or folder of ops, to implementation, to signature of the call (None: any), to why.
ASIDE: dict[str, dict[str, dict[tuple | None, str]]] = {}
_said: set[tuple[str, str]] = set()


def signature(args: tuple) -> tuple:
    """What decides which kernels a call compiles, as far as tensors show it."""
    return tuple((x.dtype, x.shape[-1] if x.dim() else 0) for x in args if isinstance(x, torch.Tensor))


def say(op: str, impl: str, message: str) -> None:
    """A warning about an implementation, once in a process."""
    if (op, impl) not in _said:
        _said.add((op, impl))
        warnings.warn(f"{message} (said once)", stacklevel=5)


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, which another implementation would want too."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(x in str(error).lower() for x in _NO_MEMORY)


_NO_MEMORY = ("out of memory", "t allocate memory", "cannot allocate", "not enough memory", "alloc_failed")
# Where errors of a launch are from: of the runtime, of compilers and of the processes that they start.
_FROM = ("builtins", "torch", "triton", "subprocess", "cutlass", "flash_attn", "flash_attn_interface")
# What a signal's handler raises, or nobody's kernel.
_NO_LAUNCH = (ValueError, NotImplementedError, RecursionError, TimeoutError, InterruptedError, ConnectionError, Warning)


def is_fault(error: BaseException) -> bool:
    """Whether an error looks like that of a launch: of a runtime or a compiler, and no lack of memory.

    Who asks for another implementation asks ``in_launch`` too: hooks and handlers raise such errors as well.
    """
    launched = isinstance(error, (RuntimeError, OSError, ImportError)) or _root(error) in ("triton", "subprocess")
    return launched and not isinstance(error, _NO_LAUNCH) and is_theirs(error)


def is_theirs(error: BaseException) -> bool:
    """Whether an error is the called library's own: no lack of memory, no time-out, no class of the caller's."""
    if not isinstance(error, Exception) or _root(error) not in _FROM or out_of_memory(error):
        return False
    if isinstance(error, (TimeoutError, InterruptedError, ConnectionError, Warning)):
        return False
    cause = error.__cause__  # Triton puts whatever was raised while it compiled into an error of its own
    return cause is None or is_theirs(cause)


def _root(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def note_launch(error: BaseException) -> None:
    """Marks what a kernel's launch itself raised. What hooks of saved tensors, signals' handlers and autograd raise
    around it bears no mark, so that nobody takes it for a fault of the kernel."""
    if is_fault(error):
        error.__dict__["_of_a_launch"] = True


def in_launch(error: BaseException) -> bool:
    return "_of_a_launch" in error.__dict__


def failed_in_launch(target: str, error: BaseException) -> None:
    """Sets aside what raised in a backward or in a compiled graph, where no other implementation can take over."""
    folder_, file = target.partition(":")[0].removesuffix("_backward").split(".")[-2:]
    if not in_launch(error) or file == "provided":  # which calls several, and falls through itself
        return
    set_aside(folder_, file, error, f"{folder_}: {file} failed in a backward or a compiled graph")


def set_aside(op: str, impl: str, error: BaseException, what: str) -> None:
    """For every call of this process; the call that found it is lost."""
    ASIDE.setdefault(op, {}).setdefault(impl, {})[None] = one_line(error)
    again = "this backward or graph is lost: impl='auto' takes another implementation when the step is run again"
    say(op, impl, f"{what} and is set aside for this process ({one_line(error)}); {again}, a graph once it is compiled "
        "again (torch.compiler.reset())")  # fmt: skip
