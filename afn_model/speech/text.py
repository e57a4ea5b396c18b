"""Text as it is said."""

from __future__ import annotations

import re
import unicodedata

from afn_model.checks import shown

# None may look at a character again and again: a text has up to 200,000 of them.
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*\)")  # Markdown: the words stay, the address goes
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
    for mark in text:  # before what is looked for: a character that is not said could part it
        kind = unicodedata.category(mark)
        if kind in ("Cs", "Cn", "Co") or mark == "\ufffd":
            raise ValueError(f"nobody can say the character U+{ord(mark):04X} in {shown(text)}")
        if mark in "\n\r\t":
            kept.append(mark)
        elif kind not in ("Cc", "Cf", "So"):
            kept.append(" " if kind[0] == "Z" else mark)
    said = _MARKS.sub(" ", _TAG.sub(" ", _LINK.sub(r"\1", "".join(kept))))
    said = " ".join(said.split())
    if not any(unicodedata.category(mark)[0] in "LN" for mark in said):
        raise ValueError(f"there is nothing to say in {shown(text)}")
    return said
