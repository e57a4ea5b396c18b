"""What tests compile, kept in build/tests between runs."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "tests"


def built(name: str, made_of: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """The file or folder that ``make(path)`` writes from ``made_of``; processes that ask at once make it once."""
    digest = hashlib.sha256()
    for part in made_of:
        digest.update(hashlib.sha256(part).digest())
    place = FOLDER / f"{name}-{digest.hexdigest()[:24]}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            fresh = place.with_name(f".{place.name}.{os.getpid()}")
            make(fresh)
            os.replace(fresh, place)
    return place
