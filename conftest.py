"""Options of tests and benchmarks: ``--device cuda`` runs kernels on a GPU, ``--shuffle 7`` runs in another order."""

import os
import random

# Before torch is imported: workers of pytest-xdist share the cores instead of fighting for them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests and benchmarks: cpu or cuda")
    parser.addoption("--shuffle", metavar="SEED", help="the order of files, and of tests within each, by this seed")


def pytest_collection_modifyitems(config, items):
    """A file's tests stay together, for what they share; a selection of tests keeps the order they have in all."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        places = {name: random.Random(f"{seed} {name}").random() for item in items for name in _names(item)}
        items.sort(key=lambda item: [places[name] for name in _names(item)])


def _names(item) -> tuple[str, str]:
    return item.nodeid.partition("::")[0], item.nodeid
