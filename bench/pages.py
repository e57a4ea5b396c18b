"""Pages of the key-value cache: 100,000 random operations beside a model of the pool, and what each operation costs.

    python -m bench.pages [--out results.jsonl] [--rounds 5]

The operations (add, extend, fork, end, preempt and offload, evict, forget, restart) are those of
tests/model/infer/test_pages.py, with a canary in every page; anything wrong is an AssertionError. Times are of a
recording of 30 minutes: 704 pages of 64 tokens in a pool of 2048; of host memory and files, 32 pages of AF-Next in
bfloat16, 3.7 MB each, the files in the page cache.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from afn_model.infer.offload import HostPages
from afn_model.infer.pages import PagePool, page_key
from bench.measure import main, milliseconds
from tests.model.infer.test_pages import operations

OPERATIONS, POOL, PAGES, SAVED, SEED = 100_000, 2048, 704, 32, 7
SHAPE = (28, 2, 64, 4, 128)  # layers, keys and values, tokens, heads, head_dim


def pool_times(rounds: int) -> dict[str, float]:
    """Microseconds a page of each of the pool's operations on the pages of one recording."""
    contents = [number.to_bytes(256, "little") for number in range(PAGES)]
    keys: list[bytes] = []

    def hash_chain() -> None:
        keys.clear()
        for content in contents:
            keys.append(page_key(keys[-1] if keys else b"", content))

    def find_and_hold() -> None:
        found = [pool.find(key, content) for key, content in zip(keys, contents, strict=True)]
        pool.hold(page for page in found if page is not None)
        pool.release(taken)

    hash_chain()
    pool = PagePool(POOL)
    taken = pool.allocate(PAGES)
    for page, key, content in zip(taken, keys, contents, strict=True):
        pool.publish(page, key, content)
    calls = {
        "hash": hash_chain,
        "find, hold and release": find_and_hold,
        "allocate and release": lambda: pool.release(pool.allocate(PAGES)),
    }
    return {name: round(1e3 * value / PAGES, 3) for name, value in milliseconds(calls, rounds).items()}


def offload_times(folder: Path, rounds: int) -> dict[str, float]:
    """GB/s of saving and loading; the best of the rounds, each in a folder of its own."""
    pages = [(page_key(b"", bytes([n])), bytes([n]), torch.randn(SHAPE).to(torch.bfloat16)) for n in range(SAVED)]
    named, total = [page[:2] for page in pages], sum(page[2].nbytes for page in pages)
    best: dict[str, float] = {}

    def timed(what: str, call: Callable[[], object]) -> None:
        begin = time.perf_counter()
        call()
        best[what] = max(best.get(what, 0.0), round(total / (time.perf_counter() - begin) / 1e9, 3))

    def save(host: HostPages) -> None:
        for page in pages:
            host.save(*page)

    for number in range(rounds):
        home, memory = folder / str(number), HostPages(total)
        files = HostPages(0, home, 2 * total)
        timed("save to memory", partial(save, memory))
        timed("load from memory", partial(memory.load_run, named))
        timed("save to files", lambda: (save(files), files.close()))  # noqa: B023
        one, run = HostPages(total, home, 2 * total), HostPages(total, home, 2 * total)
        timed("load from files, one by one", lambda: [one.load(*name) for name in named])  # noqa: B023
        timed("load from files, a run", partial(run.load_run, named))
        shutil.rmtree(home)
    return best


def measure(rounds: int, device: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        answers = operations(OPERATIONS, SEED, Path(folder) / "operations")
        seconds = time.process_time() - begin
        loaded = {place: answers.loaded[place] for place in ("memory", "folder", "nowhere")}
        print(f"{OPERATIONS} operations, nothing wrong: {seconds:.0f} s of CPU, pages looked for outside {loaded}")
        times, speeds = pool_times(rounds), offload_times(Path(folder), rounds)
    print(", ".join(f"{name} {value:.2f} us" for name, value in times.items()), "a page")
    print(", ".join(f"{name} {value:.2f} GB/s" for name, value in speeds.items()))
    record = {"benchmark": "pages", "operations": OPERATIONS, "seed": SEED, "cpu_seconds": round(seconds, 1)}
    return {**record, "allocations": len(answers.log), "loaded": loaded, "us_per_page": times, "gb_s": speeds}


if __name__ == "__main__":
    main(__doc__, measure, rounds=5)
