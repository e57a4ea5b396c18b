"""CoVoST 2: translations of Common Voice 4 (facebookresearch/covost@4cddf32, get_covost_splits.py)."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import UNSCORED, Files, field, read_table

SPLIT = "test"


def covost2(files: Files, *, direction: str) -> Iterator[Item]:
    """covost_v2.SRC_TGT.tsv with path, translation, split, joined with Common Voice's validated.tsv by path; or the
    file of the split that the authors' script makes of both, with path, sentence, translation, client_id. All are
    written without quotes, a backslash before a character that stands for itself.

    A translation whose recording is not in validated.tsv is no item of the official split: it is not scored.

    Args:
        files: of the direction.
        direction: as the file names have it, such as "en_zh-CN".
    """
    source = direction.partition("_")[0]
    name, (path, *_) = files.first("split", "translations")
    rows = list(read_table(path, sep="\t", quoted=False, escape="\\"))
    if name == "translations":
        rows = [row for row in rows if field(row, "split", path) == SPLIT]
        wanted, recordings, sentences = {row.get("path") for row in rows}, files.one("validated"), dict[str, str]()
        for row in read_table(recordings, sep="\t", quoted=False, escape="\\"):
            if field(row, "path", recordings) in wanted:
                sentences[row["path"]] = field(row, "sentence", recordings)
        rows = [row | {"sentence": sentences.get(row.get("path", ""))} for row in rows]
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number} of the split"
        file, sentence = field(row, "path", where), field(row, "sentence", where, (str, type(None)))
        yield Item(
            file,
            clips=(ItemClip(files.audio(file, "clips", f"{source}/clips", f"cv-corpus-4-2019-12-10/{source}/clips")),),
            references=(field(row, "translation", where),),
            extra={UNSCORED: "not in validated.tsv"} if sentence is None else {"transcript": sentence},
        )
