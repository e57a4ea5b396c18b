"""Audio entailment, CLE and ACE: three hypotheses about a recording (microsoft/AudioEntailment@5b8b59f)."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, listed, read_table
from afn_model.eval.loaders.videos import Videos

RELATIONS = ("Entailment", "Neutral", "Contradiction")  # columns


def entailment(files: Files) -> Iterator[Item]:
    """Three items from each row {Dataset, Audio file, Caption, Entailment, Neutral, Contradiction}. A row of Clotho has
    a file's name and five captions, a list written as text; a recording of AudioCaps has five rows of one caption each,
    and is named by "Y" and the video."""
    path, videos = files.one("hypotheses"), Videos(files.folder)
    choices = tuple(relation.lower() for relation in RELATIONS)
    for number, row in enumerate(read_table(path), 1):
        where = f"{path}, row {number}"
        name = field(row, "Audio file", where)
        captions = tuple(map(str, listed(field(row, "Caption", where))))
        is_file = name.endswith(".wav")
        audio = files.audio(name, "evaluation") if is_file else videos.path(name.removeprefix("Y"), name)
        for relation, choice in zip(RELATIONS, choices, strict=True):
            yield Item(
                id=f"{name}/{choice}",
                question=field(row, relation, where).strip(),
                clips=(ItemClip(audio),),
                choices=choices,
                answer=choice,
                groups={"relation": choice},
                extra={"captions": captions},
            )
