"""The versions that ``make test-versions`` ran on, and one warning where a newer one is used."""

import re
import sys
import warnings

# Lowest and newest. pyproject.toml asks for the lowest; bench/results/cpu/versions.md has what ran.
TESTED = {
    "torch": ("2.8", "2.15"),
    "triton": ("3.4", "3.9"),
    "numpy": ("1.24", "2.5"),
    "transformers": ("5.5", "5.24"),
}
_looked_at: set[str] = set()


def number(version: str) -> tuple[int, int]:
    """Major and minor of a version: "2.16.0a0+git" is (2, 16)."""
    major, minor, *_ = (*re.findall(r"\d+", version), "0", "0")
    return int(major), int(minor)


def installed(package: str) -> str:
    """The version of a package that need not be imported; the newest tested where it does not say."""
    import importlib.metadata  # where a kernel is asked for, and not when this package is imported

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # Triton has several names among PyTorch's nightly builds
        return TESTED[package][1]


def warn_if_newer(*packages: str) -> None:
    """Warns where one of the packages is newer than the newest tested; once for each, of those that are imported.

    Ops call it when an implementation is first imported, ``patch`` and ``FeatureExtractor`` when they are used: not
    importing this package, and not a call that follows.
    """
    new = [name for name in packages if name in sys.modules and name not in _looked_at]
    _looked_at.update(new)
    here = {name: getattr(sys.modules[name], "__version__", TESTED[name][1]) for name in new}
    newer = {name: text for name, text in here.items() if number(text) > number(TESTED[name][1])}
    if newer:
        tested = " and ".join(f"{name} {TESTED[name][0]} to {TESTED[name][1]}" for name in newer)
        found = " and ".join(f"{name} {text}" for name, text in newer.items())
        silence = 'warnings.filterwarnings("ignore", "afn_kernels was tested with")'
        warnings.warn(
            f"afn_kernels was tested with {tested}, and here is {found} (said once; silence: {silence})", stacklevel=3
        )
