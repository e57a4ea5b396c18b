"""Files in object storage, on the hub and on the web, through fsspec: they are looked up, listed and read by range.

``s3://``, ``gs://``, ``az://``, ``hf://`` and ``memory://`` are read as soon as fsspec and the package of the scheme
are there; ``http://`` and ``https://`` only where the environment says ``AFN_ALLOW_HTTP=1``, without redirects from
the internet into a private network (``afn_model.redirects``). What may pass (a lost connection, a busy server) is
tried again, at most five times in some eight seconds. File systems are made in each process: those with an event loop
do not survive a fork.
"""

from __future__ import annotations

import contextlib
import glob
import os
import posixpath
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from afn_model.redirects import RefusedRedirect, guarded

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further attempt
SILENT = 30.0  # seconds after which a web server that sends nothing has failed
KNOWN_FOR = 3600.0  # seconds that a process takes a file in storage for unchanged
PIECE = 1 << 22  # bytes of a download that are fetched at once
_MOST_KNOWN = 100_000  # files
LISTED = 4  # files of one folder that are looked up one by one; the folder of more is listed
HTTP = ("http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = re.compile(r"(https?://)[^/\s?#'\"]*@|([a-z][a-z0-9+.-]*://)[^/\s?#'\":@]*:[^/\s?#'\"]*@", re.I)
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*?(?=[:;,)]*(?:[\s'\"]|$))", re.I)
_MAGIC = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*)\}")
_MOST_BRACES = 1_000_000
_NETWORK = ("aiohttp", "httpx", "requests", "botocore")  # packages whose errors may pass
_TAGS = ("ETag", "etag", "lfs", "blob_id", "LastModified", "Last-Modified", "mtime", "updated", "created")
_CLOUD = {
    "s3": ("s3fs", "AWS credentials that may read it (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"),
    "gs": ("gcsfs", "Google credentials that may read it (gcloud auth application-default login)"),
    "az": ("adlfs", "Azure credentials that may read it (AZURE_STORAGE_ACCOUNT_NAME and its key)"),
    "hf": ("huggingface_hub", "a token that may read it (HF_TOKEN), and its terms accepted where it is gated"),
    "http": ("aiohttp", "an address that may be read without signing in"),
    "memory": ("fsspec", "permission to read it"),
}
_HIDDEN = ", or one that HF_TOKEN may not read"
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
S = TypeVar("S")
T = TypeVar("T")


class StorageError(ValueError):
    """One line that begins with the address, as it may be shown, of what cannot be read."""

    def __init__(self, text: str):
        super().__init__(shown(text))


class NoSuchFile(StorageError):
    """Nothing has this name."""


class NoAnswerError(StorageError):
    """What may pass has not: a lost connection, a busy server. It says nothing about the file."""


class NotFromHereError(StorageError):
    """What lies in storage names a file of this machine."""


@dataclass(frozen=True)
class FileState:
    """What tells one state of a file from another.

    Args:
        size: bytes.
        written: time of change in ns; in storage what it says of the content, or when it was written.
    """

    size: int
    written: int | str


def shown(text: str) -> str:
    """A text for people and logs: addresses in it without user, password and query, which may be a signature."""
    return _QUERY.sub(r"\1?…", _USER.sub(r"\1\2", text))


def is_url(path: Any) -> bool:
    """Whether a path is an address in storage or on the web."""
    return isinstance(path, str) and _URL.match(path) is not None


def located(folder: str | Path, path: str | Path) -> str | Path:
    """A path that is relative to a folder: text where it is an address, else a ``Path``."""
    if is_url(path):
        return path
    return join(str(folder), str(path)) if is_url(folder) else Path(folder) / path


def join(folder: str | os.PathLike, path: str) -> str:
    """``path`` as seen from ``folder``, either of which may be an address; absolute paths stay as they are.

    Raises:
        NotFromHereError: an absolute path seen from storage: others have written it, who must not name files of this
            machine.
    """
    if is_url(path):
        return path
    folder = os.fspath(folder)
    if not is_url(folder):
        return os.path.join(folder, path)
    if path.startswith("/"):
        raise NotFromHereError(
            f"{path:.200}: what lies in storage cannot name a file of this machine; a path from {folder} or an address "
            "is expected"
        )
    return posixpath.join(folder.rstrip("/"), path)


def bare(path: str) -> str:
    """A path, of a web address without its query, which may be a signature with slashes in it."""
    return path.partition("?")[0] if is_url(path) and _scheme(path) in HTTP else path


def parent(path: str) -> str:
    """The folder of a file; of ``s3://bucket`` itself."""
    path = bare(path)
    begin = _URL.match(path)
    if begin is None:
        return os.path.dirname(path)
    rest = path[begin.end() :].rpartition("/")[0]
    return path[: begin.end()] + rest if rest else path


def check_allowed(url: str) -> None:
    """Refuses what is not read at all.

    Raises:
        StorageError: a web address, and ``AFN_ALLOW_HTTP`` is not set; a scheme that is not known.
    """
    scheme = _scheme(url)
    if scheme in HTTP and os.environ.get("AFN_ALLOW_HTTP") != "1":
        raise StorageError(
            f"{url}: only local files are read; download it first (or set AFN_ALLOW_HTTP=1, and web addresses are read)"
        )
    if _SAME.get(scheme, scheme) not in _CLOUD:
        raise StorageError(f"{url}: no address that is read; s3, gs, az, hf and https are, and local files")


def _scheme(url: str) -> str:
    found = _URL.match(url)
    assert found is not None
    return found[1].lower()


_systems: dict[tuple[int, str], Any] = {}  # those of a process that forked stay: closing one would close the parent's


def _system(url: str) -> Any:
    check_allowed(url)
    scheme = _scheme(url)
    if (os.getpid(), scheme) not in _systems:
        package = _CLOUD[_SAME.get(scheme, scheme)][0]
        try:
            import fsspec

            system = fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme))
        except ImportError as error:
            raise StorageError(f"{url}: needs fsspec and {package}: pip install fsspec {package} ({error})") from None
        except Exception as error:  # credentials are read here
            raise _problem(url, error)[0] from None
        _systems[os.getpid(), scheme] = system
    return _systems[os.getpid(), scheme]


def _options(scheme: str) -> dict[str, Any]:
    """Of a web server the client would wait five minutes, at each attempt, whether or not anything comes."""
    if scheme not in HTTP:
        return {}
    aiohttp = import_module("aiohttp")  # of an extra, so that types are not checked against it
    from fsspec.config import conf

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENT, sock_read=SILENT)
    given = {"timeout": timeout, "trace_configs": [guarded()]}
    return {"client_kwargs": {**given, **conf.get(scheme, {}).get("client_kwargs", {})}}


def _problem(url: str, error: Exception) -> tuple[StorageError, bool]:
    """What is wrong, in one line, and whether it may pass."""
    cause = error.__cause__
    if refusal := next((one for one in (error, cause) if isinstance(one, RefusedRedirect)), None):
        return StorageError(f"{url}: {refusal}"), False
    if (
        isinstance(error, FileNotFoundError)
        and isinstance(cause, Exception)
        and type(cause).__module__.startswith("aiohttp")
    ):
        error = cause  # whatever a server answers is no such file to fsspec
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    said = " ".join(str(error).split())[:200]
    said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)) or status == 404:
        return NoSuchFile(f"{url}: no such file{'' if _scheme(url) != 'hf' else _HIDDEN}"), False
    refused = isinstance(error, PermissionError) or status in (401, 403) or "credentials" in said.lower()
    if refused:
        scheme = _scheme(url)
        needed = _CLOUD[_SAME.get(scheme, scheme)][1]
        return StorageError(f"{url}: no access ({said}); it needs {needed}"), False
    passing = status is None or status == 429 or status >= 500
    kinds = (OSError, EOFError, TimeoutError)
    if not isinstance(error, kinds) and not type(error).__module__.startswith(_NETWORK):
        passing = False
    return (NoAnswerError if passing else StorageError)(f"{url}: cannot be read ({said})"), passing


def _ask(url: str, work: Callable[[Any], T]) -> T:
    """What ``work`` returns for the file system of an address; tried again where the error may pass.

    Raises:
        NoSuchFile: nothing has this name.
        NoAnswerError: the error has not passed.
        StorageError: one line with the address: no access and what it needs, a package that is missing, another error.
    """
    system = _system(url)
    for wait in (*WAITS, None):
        try:
            return work(system)
        except Exception as error:  # every file system has its own
            problem, passing = _problem(url, error)
        if not passing or wait is None:
            raise problem from None
        time.sleep(wait)
    raise AssertionError


_known: dict[tuple[int, str], tuple[float, FileState]] = {}


def state(path: str | os.PathLike) -> FileState:
    """The state of a file; of one in storage as this process saw it at most an hour ago.

    Raises:
        NoSuchFile: nothing has this name.
        StorageError: no access, not a file, or a server that does not say how long it is.
    """
    path = os.fspath(path)
    if not is_url(path):
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            raise NoSuchFile(f"{path}: no such file") from None
        return FileState(status.st_size, status.st_mtime_ns)
    when, found = _known.get((os.getpid(), path), (0.0, None))
    if found is not None and time.monotonic() - when < KNOWN_FOR:
        return found
    found = _read_info(path, _ask(path, lambda system: system.info(path)))
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[os.getpid(), path] = time.monotonic(), found
    return found


def _read_info(url: str, info: dict) -> FileState:
    if info.get("type") == "directory":
        raise NoSuchFile(f"{url}: no such file")
    if not isinstance(info.get("size"), int):
        raise StorageError(f"{url}: its server does not say how long it is")
    tag = next((info[key] for key in _TAGS if info.get(key)), "")
    tag = tag.get("sha256") or tag.get("oid") or str(tag) if isinstance(tag, dict) else str(tag).strip('"')
    return FileState(info["size"], tag)


def forget() -> None:
    """Looks at every file in storage anew."""
    _known.clear()
    for (process, _), system in _systems.items():
        if process == os.getpid():
            system.invalidate_cache()


def states(paths: Iterable[str]) -> dict[str, FileState | StorageError]:
    """The state of each file as it is now, or what is wrong with it; the folder of many is listed at once."""
    forget()
    found: dict[str, FileState | StorageError] = {}
    folders: dict[str, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        folders[parent(path) if is_url(path) else ""].append(path)
    for folder, files in folders.items():
        try:
            if is_url(folder) and _scheme(folder) not in HTTP and len(files) > LISTED:
                found |= _listed_states(folder, files)
                continue
        except StorageError as error:
            found |= {file: type(error)(str(error).replace(folder, file, 1)) for file in files}
            continue
        for file in files:
            try:
                found[file] = state(file)
            except StorageError as error:
                found[file] = error
    return found


def _listed_states(folder: str, files: list[str]) -> dict[str, FileState | StorageError]:
    found: dict[str, FileState | StorageError] = {file: NoSuchFile(f"{file}: no such file") for file in files}
    plain = type(_system(folder))._strip_protocol
    named = {plain(file): file for file in files}
    for info in _ask(folder, lambda system: system.ls(folder, detail=True)):
        file = named.get(plain(info["name"]))
        if file is not None and info.get("type") != "directory":
            found[file] = _read_info(file, info)
    return found


def _with_scheme(url: str, name: str) -> str:
    """The address of what a listing names, which may come without its scheme."""
    return name if is_url(name) else f"{url.partition('://')[0]}://{name.lstrip('/')}"


def is_folder(path: str | os.PathLike) -> bool:
    """Whether it is a folder, here or in storage; a web address is none."""
    path = os.fspath(path)
    if not is_url(path):
        return os.path.isdir(path)
    try:
        return _scheme(path) not in HTTP and _ask(path, lambda system: system.info(path)).get("type") == "directory"
    except NoSuchFile:
        return False


def listing(folder: str) -> list[str]:
    """The files in a folder and below it, in order.

    Raises:
        StorageError: no access.
    """
    if not is_url(folder):
        return sorted(str(file) for file in Path(folder).rglob("*") if file.is_file())
    return sorted(_with_scheme(folder, name) for name in _ask(folder, lambda system: system.find(folder)))


def is_pattern(path: str) -> bool:
    """Whether a path stands for several: ``{000..127}``, ``{a,b}``, ``*``, and but for the web ``?`` and ``[...]``."""
    found = _MAGIC.search(path)
    web = is_url(path) and _scheme(path) in HTTP  # where a question mark is a part of an address
    return _RANGE.search(path) is not None or (found is not None and (not web or "*" in path))


def expand(pattern: str) -> list[str]:
    """The files that a pattern names, in order; a name without a pattern is given back as it is.

    Raises:
        StorageError: nothing is called so, or a pattern of a web address, which has no listing.
    """
    found = []
    for name in _braces(pattern):
        if not _MAGIC.search(name):
            found.append(name)
        elif not is_url(name):
            found += sorted(glob.glob(name, recursive=True))
        elif _scheme(name) in HTTP:
            raise StorageError(f"{name}: the web has no listing; name its files by braces, as in {{000..127}}")
        else:
            matches = _ask(name, lambda system, name=name: system.glob(name))
            if not matches:  # to glob a folder that may not be read is an empty one
                with contextlib.suppress(NoSuchFile):
                    folder = parent(name[: _first_magic(name)])
                    _ask(folder, lambda system, folder=folder: system.ls(folder))
            found += sorted(_with_scheme(name, match) for match in matches)
    if not found:
        raise StorageError(f"{pattern}: nothing is called like this")
    return list(dict.fromkeys(found))


def _first_magic(name: str) -> int:
    found = _MAGIC.search(name)
    return len(name) if found is None else found.start()


def _braces(pattern: str) -> list[str]:
    """Every name of a pattern with braces, those further left changing slowest."""
    names = [pattern]
    while any(_RANGE.search(name) for name in names):
        following = []
        for name in names:
            match = _RANGE.search(name)
            if match is None:
                following.append(name)
                continue
            values = _numbers(match[1], match[2]) if match[1] else match[3].split(",")
            following += [name[: match.start()] + value + name[match.end() :] for value in values]
            if len(following) > _MOST_BRACES:
                raise StorageError(f"{pattern}: more than {_MOST_BRACES:,} names")
        names = following
    return names


def _numbers(first: str, last: str) -> list[str]:
    begin, end, width = int(first), int(last), len(first) if first.startswith("0") else 0
    if end - begin >= _MOST_BRACES or end < begin:
        raise StorageError(f"{{{first}..{last}}}: from {first} up to {last} is expected")
    return [f"{number:0{width}d}" for number in range(begin, end + 1)]


def ahead(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[tuple[S, T]]:
    """(item, ``work(item)``) of each item in order; with threads, so many answers of storage are waited for at once."""
    if not threads:
        yield from ((item, work(item)) for item in items)
        return
    waiting: deque[tuple[S, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= 2 * threads:
                    item, future = waiting.popleft()
                    yield item, future.result()
            while waiting:
                item, future = waiting.popleft()
                yield item, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def read_range(url: str, begin: int, end: int, size: int) -> bytes:
    """Bytes ``begin`` to ``end`` of a file in storage.

    Args:
        url: its address.
        begin, end: 0 ≤ begin ≤ end ≤ size.
        size: of the whole file.

    Raises:
        StorageError: one line: no such file, no access, or fewer bytes than there should be.
    """
    if begin == end:
        return b""

    def fetch(system) -> bytes:
        data = system.cat_file(url, start=begin, end=end)
        if len(data) == size != end - begin:  # a server that knows no ranges
            data = data[begin:end]
        if len(data) != end - begin:
            raise EOFError(f"{len(data)} bytes came of the {end - begin} from byte {begin} on")
        return data

    return _ask(url, fetch)


def read_first(url: str, most: int) -> bytes:
    """The first bytes of a file in storage, fewer than ``most`` only where it has no more."""

    def fetch(system) -> bytes:
        try:
            return system.cat_file(url, start=0, end=most)
        except Exception:
            if system.info(url).get("size") == 0:  # of which nothing can be asked for
                return b""
            raise

    return _ask(url, fetch)


def download(url: str, target: Path) -> None:
    """Writes a file in storage to a local path, piece by piece."""
    size = state(url).size
    with target.open("wb") as file:
        for begin in range(0, size, PIECE):
            file.write(read_range(url, begin, min(begin + PIECE, size), size))
