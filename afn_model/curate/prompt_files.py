"""Prompts of stages: text files with ``$name`` where data go. What requests share comes first, what is asked last, so
that an endpoint that keeps the beginnings of prompts reads them once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from afn_model.curate import identity

PROMPTS = Path(__file__).parent / "prompts"
_DATA = re.compile(r"\$([a-z]+)\b")


@dataclass(frozen=True)
class PromptFile:
    """A prompt.

    Args:
        name: as a plan names it.
        text: of the file.
    """

    name: str
    text: str

    @property
    def hash(self) -> str:
        return identity.of("prompt", self.text)

    @property
    def instruction(self) -> str:
        """What follows the last data."""
        return _DATA.split(self.text)[-1].strip()

    def fill(self, **data: str) -> str:
        """The prompt with its data; what looks like a name in data stays.

        Raises:
            ValueError: there is no such place in it, or one is left empty.
        """
        names = set(_DATA.findall(self.text))
        if names != set(data):
            raise ValueError(f"prompt {self.name} takes {', '.join(sorted(names)) or 'no data'}, got {sorted(data)}")
        return _DATA.sub(lambda found: data[found[1]], self.text).strip()


@lru_cache
def prompt_file(name: str) -> PromptFile:
    """One of this package's prompts by its name, or that of any text file.

    Raises:
        ValueError: there is none.
    """
    path = PROMPTS / f"{name}.txt"
    if not path.is_file():
        path = Path(name)
    try:
        return PromptFile(name, path.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        known = ", ".join(sorted(one.stem for one in PROMPTS.glob("*.txt")))
        raise ValueError(f"no prompt {name!r}: expected a text file, or one of {known}") from None
