"""The cases of every op, one file per op; test_every_op.py asks them all the same questions."""

import importlib
import pkgutil

CASES = [
    case
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    for case in importlib.import_module(f"{__name__}.{module.name}").CASES
]
