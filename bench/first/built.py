"""Whether this checkout is built and importable: with exit status 0 `make gpu-build` has nothing to do."""

from __future__ import annotations

import importlib.util
import sys

from afn_kernels import _cuda


def missing() -> str:
    """What is not there, in a line; empty when all is."""
    sources, shipped = _cuda.shipped()
    if without := [name for name in sources if name not in shipped]:
        return f"no machine code of {', '.join(without)}"
    if changed := [name for name in sources if _cuda.stale(name)]:
        return f"the machine code of {', '.join(changed)} is of another source"
    return "" if importlib.util.find_spec("afn_distributed") else "afn_distributed is not installed"


if __name__ == "__main__":
    sys.exit(missing() and f"gpu-build: {missing()}; installing")
