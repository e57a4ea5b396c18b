"""Text as it is said."""

from __future__ import annotations

import re
import unicodedata

from afn_model.checks import shown

# Bounded, and no two parts of one take the same characters: time grows with the text's length alone.
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^)\s]{0,2000}\)")  # Markdown: the words stay, the address goes
_TAG = re.compile(r"<\|[^|<>]*\|>|</?[A-Za-z][^<>]*>")
_MARKS = re.compile(r"[*_`#~|\\^]+|^[^\S\n]*(?:>|[-+•]\s)", re.MULTILINE)


def spoken_text(text: str) -> str:
    """A text without what is not said: markup, tags, special tokens, control characters, pictures.

    Raises:
        ValueError: no letter or digit is left, or a character is none: a surrogate, unassigned, private, or U+FFFD.
    """
    if not isinstance(text, str):
        raise ValueError(f"what is said must be text, got {shown(text)}")
    kept = []
    for mark in _MARKS.sub(" ", _TAG.sub(" ", _LINK.sub(r"\1", text))):
        kind = unicodedata.category(mark)
        if kind in ("Cs", "Cn", "Co") or mark == "\ufffd":
            raise ValueError(f"nobody can say the character U+{ord(mark):04X} in {shown(text)}")
        if kind[0] == "Z" or mark in "\n\r\t":
            kept.append(" ")
        elif kind not in ("Cc", "Cf", "So"):
            kept.append(mark)
    said = " ".join("".join(kept).split())
    if not any(unicodedata.category(mark)[0] in "LN" for mark in said):
        raise ValueError(f"there is nothing to say in {shown(text)}")
    return said
