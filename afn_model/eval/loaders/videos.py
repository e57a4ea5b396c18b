"""Clips of videos: benchmarks name the video, and everybody who fetched them named the files in another way."""

from __future__ import annotations

import re
from pathlib import Path

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"}
# The 11 characters of a video, "Y" or "[" before them, and behind them times of the clip.
_NAME = re.compile(r"\[?Y?([\w-]{11})\]?(?:[-_.\[].*)?")


class Videos:
    """All recordings below a folder, by name and by the video that they are of."""

    def __init__(self, folder: Path):
        self.folder = folder
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        self.named = {path.stem: path for path in reversed(paths)}
        matches = [(_NAME.fullmatch(name), path) for name, path in self.named.items()]
        self.of = {match[1]: path for match, path in matches if match}

    def path(self, video: str, *names: str) -> str:
        """Where the clip of a video is: ``<id>.wav``, ``Y<id>.flac``, ``<id>_<start>.wav`` and ``[<id>]-[30-40].wav``
        are in use, and ``names``, without suffixes. A clip that is nowhere is ``<id>.wav``, which errors will name."""
        found = next((self.named[name] for name in (video, *names) if name in self.named), None)
        return str(found or self.of.get(video) or self.folder / f"{video}.wav")
