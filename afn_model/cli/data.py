"""``afn data``: indexes a corpus, shows its records, prints its statistics. Heavy imports wait until it runs."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from afn_model.cli.options import positive

if TYPE_CHECKING:
    from afn_model.data.records import Sample
    from afn_model.prompt.processor import AFNextProcessor

CONTEXTS = (8_192, 24_576, 131_072)


def add_index(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON Lines corpora; each gets FILE.index")
    parser.add_argument(
        "--measure",
        nargs="?",
        choices=("missing", "all"),
        const="missing",
        help="read durations from the recordings' headers, where records give none or of all",
    )
    parser.add_argument("--no-check", action="store_true", help="index records that are not valid too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="JSON Lines corpus")
    parser.add_argument("which", nargs="?", default="0", metavar="INDEX|ID", help="default the first record")
    parser.add_argument("--model", metavar="DIR", help="model folder whose tokenizer counts tokens")


def add_stats(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="indexed JSON Lines corpora")
    parser.add_argument("--context", nargs="+", type=positive, default=CONTEXTS, metavar="N", help="bins to pack into")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="clips padded together, to compare")
    parser.add_argument("--sample", type=positive, default=100_000, metavar="N", help="records to read of each file")
    parser.add_argument("--model", metavar="DIR", help="model folder whose tokenizer counts tokens")
    parser.add_argument("--out", metavar="DIR", help="write lengths.png and padding.png there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def index(args: Namespace) -> None:
    from dataclasses import asdict

    from tqdm import tqdm

    from afn_model.data.index import build
    from afn_model.data.records import check

    measure = {None: False, "missing": True, "all": "all"}[args.measure]
    for file in args.files:
        total = os.path.getsize(file) if os.path.isfile(file) else 0
        with tqdm(total=total, unit="B", unit_scale=True, desc=Path(file).name, disable=None) as bar:
            facts = build(file, check=None if args.no_check else check, progress=bar.update, measure=measure)
        if args.json:
            print(json.dumps({"file": file} | asdict(facts)), flush=True)
        else:
            print(f"{file}: {facts.records:,} records, {facts.seconds / 3600:,.2f} hours, {facts.fingerprint[:12]}")


def inspect(args: Namespace) -> None:
    from afn_model.data.records import parse_sample

    at, record = find(Path(args.file), args.which)
    try:
        sample = parse_sample(record, Path(args.file).parent)
    except ValueError as error:
        raise ValueError(f"{args.file}[{at}]: {error}") from None
    print("\n".join(described(sample, f"{args.file}[{at}]", _processor(args.model))))


def find(file: Path, which: str) -> tuple[int, dict]:
    """(number, record) of a record by its number or its id.

    Raises:
        ValueError: no such file or record.
    """
    from afn_model.data.index import Corpus, folder_of, parse

    if which.isdecimal() and folder_of(file).is_dir():
        corpus = Corpus(file)
        if int(which) < len(corpus):
            return int(which), corpus[int(which)]
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    count = 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            wanted = which.isdecimal() and count == int(which)
            if wanted or which.encode() in line or b"\\" in line:
                record = parse(line)
                if wanted or str(record.get("id")) == which:
                    return count, record
            count += 1
    raise ValueError(f"{file}: no record with number or id {which!r} among its {count}")


def described(sample: Sample, name: str, processor: AFNextProcessor | None) -> Iterator[str]:
    """The lines that show a sample; supervised text is marked with »."""
    from afn_model.data.records import audios_of

    yield f"{name}  {sample.id}"
    kinds = [f"{key} {getattr(sample, key)}" for key in ("axis", "task", "source") if getattr(sample, key)]
    yield ", ".join([*kinds, f"{sample.seconds:.2f} s of audio"])
    numbers = {audio: number for number, audio in enumerate(dict.fromkeys(audios_of(sample)), 1)}
    for turn in sample.turns:
        learnt = turn.role == "assistant"
        yield f"\n{turn.role}{' (learnt)' if learnt else ''}"
        for part in turn.parts:
            if not isinstance(part, str):
                yield f"  [audio {numbers[part]}] {_described_audio(part)}"
            else:
                for line in part.strip("\n").split("\n") if part.strip() else []:
                    yield f"{'»' if learnt else ' '} {line}"
    for reward in sample.rewards:
        yield f"\nreward {json.dumps(reward, ensure_ascii=False)}"
    if sample.truth:
        yield f"\ntruth {json.dumps(sample.truth, ensure_ascii=False)}"
    if processor is not None:
        yield f"\n{_counted(sample, processor)}"


def _described_audio(audio) -> str:
    from afn_model.audio.shards import is_member, split_path

    file = split_path(audio.source)[0] if is_member(audio.source) else audio.source
    part = "" if audio.start is None and audio.end is None else f" {audio.start or 0:g} s to {_end(audio.end)}"
    return f"{audio.source}{part}{'' if os.path.isfile(file) else ' (no such file)'}"


def _end(end: float | None) -> str:
    return "its end" if end is None else f"{end:g} s"


def _counted(sample: Sample, processor: AFNextProcessor) -> str:
    from afn_model.prompt.batch import IGNORED

    training = any(turn.role == "assistant" for turn in sample.turns)
    try:
        prepared = processor.prepare(sample.turns, training=training)
    except ValueError as error:
        text = processor.text_tokens(sample.turns, training=training)
        return f"{text} tokens of text; its audio cannot be used: {error}"
    heard = int((prepared.ids == processor.sound_id).sum())
    learnt = int((prepared.labels != IGNORED).sum()) if training else 0
    return f"{len(prepared.ids)} tokens, {heard} of them audio, {learnt} learnt"


def stats(args: Namespace) -> None:
    from afn_model.data.stats import as_json, collect, draw, padding, text

    statistics = collect(args.files, _processor(args.model), args.sample)
    paddings = [padding(statistics.tokens, context, args.batch) for context in args.context if len(statistics.tokens)]
    pictures = draw(statistics, paddings, args.out) if args.out else []
    if args.json:
        facts = as_json(statistics, paddings) | {"pictures": [str(path) for path in pictures]}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print("\n".join([text(statistics, paddings), *(f"wrote {path}" for path in pictures)]))


def _processor(folder: str | None) -> AFNextProcessor | None:
    if folder is None:
        return None
    from afn_model.prompt.processor import AFNextProcessor

    return AFNextProcessor.from_pretrained(folder)
