"""Options of tests and benchmarks: the device, the order of tests, the seed of random inputs, a part of the tests."""

import os
import random
import zlib

import bench  # noqa: F401  ends with one line where the checkout hides an installed package that is compiled

# Before torch is imported: workers of pytest-xdist share the cores instead of fighting for them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests and benchmarks: cpu or cuda")
    parser.addoption("--shuffle", metavar="SEED", help="the order of files, and of tests within each, by this seed")
    parser.addoption("--seed", type=int, help="of random inputs; by default new in every run, and printed")
    parser.addoption("--part", default="0/1", help="of the tests, by their names' hash: 0/2 and 1/2 are all of them")


def pytest_collection_modifyitems(config, items):
    """A file's tests stay together, for what they share; a selection of tests keeps the order they have in all."""
    part, parts = map(int, config.getoption("--part").split("/"))
    items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part]
    seed = config.getoption("--shuffle")
    if seed is not None:
        places = {name: random.Random(f"{seed} {name}").random() for item in items for name in _names(item)}
        items.sort(key=lambda item: [places[name] for name in _names(item)])


def _names(item) -> tuple[str, str]:
    return item.nodeid.partition("::")[0], item.nodeid
