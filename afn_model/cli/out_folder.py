"""A folder of answers: files of each recording, and a list of what is done that a later run goes on with."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from afn_model.cli.recordings import AnswerFile
from afn_model.files import write_text
from afn_model.infer.subtitles import FORMATS

LIST = "answers.jsonl"


class OutFolder:
    """Files about recordings, named as they are: ``talk.srt`` of ``talk.wav``.

    Each answer is first added to ``answers.jsonl`` and then written in every format, so that a run killed at any moment
    leaves whole files, the next one asks about nothing twice, and another format needs no model. A name that another
    recording has is given with its ending (``talk.wav.srt``), or with a number.

    Args:
        folder: made where it is missing.
        formats: names of ``FORMATS``.
        same: what all answers in the folder share, such as the question.
        given: recordings, and what each is called below the folder.
        overwrite: asks about the recordings again, and replaces files whoever wrote them.

    Raises:
        ValueError: a folder with answers to another question, or with files of these names that are not its own.
    """

    def __init__(
        self,
        folder: str | Path,
        formats: Sequence[str],
        same: dict[str, Any],
        given: Mapping[str, str],
        *,
        overwrite: bool = False,
    ):
        self.folder, self.formats = Path(folder), tuple(formats)
        self.folder.mkdir(parents=True, exist_ok=True)
        before = {row["audio"][0]: row["name"] for row in AnswerFile(self.folder / LIST, {}).rows() if "name" in row}
        self.list = AnswerFile(self.folder / LIST, same, again=given if overwrite else ())
        self.names = dict(before)
        for recording, name in given.items():
            if recording not in self.names:
                self.names[recording] = self._free(name, set(map(str.lower, self.names.values())))
                if not overwrite:
                    self._check_free(self.names[recording])
        for row in self.list.rows():
            if row["audio"][0] in given:
                self._write(row, missing=True)

    @property
    def done(self) -> Collection[str]:
        """Recordings whose answers are there."""
        return self.list.done

    def write(self, row: dict[str, Any]) -> None:
        """Keeps an answer: a row of ``as_json`` with its segments."""
        row = row | {"name": self.names[row["audio"][0]]}
        self.list.write(row)
        self._write(row)

    def _write(self, row: dict[str, Any], *, missing: bool = False) -> None:
        for form in self.formats:
            file = self.path(row["name"], form)
            if not (missing and file.exists()):
                file.parent.mkdir(parents=True, exist_ok=True)
                text = FORMATS[form](row).encode("utf-8", errors="backslashreplace").decode()
                write_text(file, text)

    def path(self, name: str, form: str) -> Path:
        return self.folder / f"{name}.{form}"

    def _free(self, name: str, taken: set[str]) -> str:
        parts = [part for part in os.path.normpath(name).split(os.sep) if part not in ("..", "", ".")]
        whole = os.path.join(*parts) if parts else "recording"
        stem = os.path.splitext(whole)[0]
        numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 4))
        return next(one for one in (stem, whole, *numbered) if one.lower() not in taken)

    def _check_free(self, name: str) -> None:
        for form in self.formats:
            if self.path(name, form).exists():
                raise ValueError(
                    f"{self.path(name, form)}: is there, and not of this question; choose another folder or --overwrite"
                )
