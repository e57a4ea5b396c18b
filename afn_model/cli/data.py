"""``afn data``: reads other tools' corpora, indexes one, shows its records and statistics. Heavy imports wait."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from afn_model.cli.messages import show_error
from afn_model.cli.options import positive

if TYPE_CHECKING:
    from afn_model.data.records import Sample
    from afn_model.prompt.processor import AFNextProcessor

CONTEXTS = (8_192, 24_576, 131_072)


MEASURES = {None: False, "missing": True, "all": "all"}
_NAMED = 100  # missing recordings that are named


def add_import(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a JSON array, a NeMo manifest, a table with a header (.csv, .tsv), or a Kaldi folder (wav.scp, text, "
        "perhaps segments)",
    )
    parser.add_argument("out", metavar="OUT.jsonl", help="the corpus to write; it must not be there")
    add_columns(parser)


def add_copy(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="an indexed corpus, here or in storage")
    parser.add_argument("out", metavar="OUT.jsonl", help="the copy; its recordings go into tar files in the folder OUT")
    parser.add_argument("--shard", type=positive, default=1000, metavar="MB", help="size of a tar file; default 1000")


def add_columns(parser: ArgumentParser) -> None:
    parser.add_argument("--audio", metavar="NAME", help="column or key of the recordings; default by its usual names")
    parser.add_argument("--text", metavar="NAME", help="column or key of the transcripts or answers")
    parser.add_argument("--question", metavar="NAME", help="column or key of the questions")
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what every recording without a question is asked; of transcripts 'Transcribe the input speech.'",
    )


def add_index(parser: ArgumentParser) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = (
        "Reads JSON Lines, Parquet files with recordings in them, folders that `datasets` has saved, and WebDataset\n"
        "tar files (train-{000..127}.tar), on this machine and in storage (s3://, gs://, hf://); `afn data import`\n"
        "makes a corpus of JSON arrays, tables, NeMo manifests and Kaldi folders.\n"
        "The index lies beside the corpus; where that folder cannot be written to, and of what lies in storage, in\n"
        "~/.cache/afn/index; and in $AFN_INDEX_DIR where that is set, for training too."
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="corpora; each gets FILE.index")
    add_columns(parser)
    parser.add_argument(
        "--measure",
        nargs="?",
        const="missing",
        metavar="all",
        help="read durations from the recordings' headers where records give none, or of all records",
    )
    parser.add_argument("--no-check", action="store_true", help="index records that are not valid too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="corpus")
    parser.add_argument("which", nargs="?", default="0", metavar="INDEX|ID", help="default the first record")
    parser.add_argument("--model", metavar="DIR", help="model folder whose tokenizer counts tokens")


def add_step(parser: ArgumentParser) -> None:
    parser.add_argument("curriculum", metavar="CURRICULUM", help="YAML, such as RUN/curriculum.yaml")
    parser.add_argument("stage", metavar="STAGE")
    parser.add_argument("step", metavar="N", type=natural, help="as the log counts, from 0")
    parser.add_argument("--model", metavar="DIR", required=True, help="model folder that the stage starts from")
    parser.add_argument("--data", metavar="DIR", help="folder of the curriculum's datasets; default its own")
    parser.add_argument("--layout", metavar="FILE", default="cpu", help="that of the run, where ranks share sequences")
    parser.add_argument("--rank", metavar="R/N", default="0/1", type=rank_of, help="what rank R of N had; default all")
    parser.add_argument("--json", action="store_true", help="print JSON")


def natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def rank_of(text: str) -> tuple[int, int]:
    rank, _, ranks = text.partition("/")
    if not rank.isdecimal() or not ranks.isdecimal() or int(rank) >= int(ranks):
        raise ArgumentTypeError(f"{text!r} is not R/N, such as 3/8 for the fourth of eight ranks")
    return int(rank), int(ranks)


def add_stats(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="indexed corpora")
    parser.add_argument("--curriculum", metavar="FILE", help="say how long its stages are instead; needs --model")
    parser.add_argument("--data", metavar="DIR", help="folder of the curriculum's datasets; default its own")
    parser.add_argument("--context", nargs="+", type=positive, default=CONTEXTS, metavar="N", help="bins to pack into")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="clips padded together, to compare")
    parser.add_argument("--sample", type=positive, default=100_000, metavar="N", help="records to read of each file")
    parser.add_argument("--model", metavar="DIR", help="model folder whose tokenizer counts tokens")
    parser.add_argument("--out", metavar="DIR", help="write lengths.png and padding.png there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def import_(args: Namespace) -> None:
    from afn_model.data.foreign import Columns, convert

    columns = Columns(args.audio, args.text, args.question, args.instruction)
    with line_by_line(f"{args.out} is not written"):
        count = convert(args.source, args.out, columns)
    print(f"{args.out}: {count:,} records; index it with `afn data index {args.out} --measure`")


def copy_(args: Namespace) -> None:
    from tqdm import tqdm

    from afn_model.data.copy import copy

    with tqdm(unit="", desc=Path(args.source).name, disable=None) as bar:
        count = copy(args.source, args.out, max_bytes=args.shard * 10**6, progress=bar.update)
    print(f"{args.out}: {count:,} records; index it with `afn data index {args.out}`")


def index(args: Namespace) -> None:
    from dataclasses import asdict

    from tqdm import tqdm

    from afn_model.data.check import missing_recordings
    from afn_model.data.foreign import Columns
    from afn_model.data.index import build
    from afn_model.data.records import check

    files = list(args.files)
    if args.measure not in MEASURES:  # `--measure FILE`
        files, args.measure = [args.measure, *files], "missing"
    if not files:
        raise ValueError("the following arguments are required: FILE (afn data index --help says more)")
    missing, columns = [], Columns(args.audio, args.text, args.question, args.instruction)
    for file in files:
        total = os.path.getsize(file) if os.path.isfile(file) else 0
        checked = None if args.no_check else check
        with (
            line_by_line(f"{file} is not indexed"),
            tqdm(total=total, unit="B", unit_scale=True, desc=Path(file).name, disable=None) as bar,
        ):
            facts = build(file, check=checked, progress=bar.update, measure=MEASURES[args.measure], columns=columns)
        if args.json:
            print(json.dumps({"file": file} | asdict(facts)), flush=True)
        else:
            hours = f"{facts.seconds / 3600:,.2f} hours"
            print(f"{file}: {facts.records:,} records, {hours}, {facts.fingerprint[:12]}", flush=True)
        if facts.unmeasured:
            remedy = f"`afn data index {file} --measure` reads it from their headers"
            warnings.warn(
                f"{file}: {facts.unmeasured:,} records with audio have no duration and cannot train; {remedy}",
                stacklevel=2,
            )
        if not args.no_check:
            with tqdm(total=facts.records, unit="", desc="Recordings", disable=None, leave=False) as bar:
                missing += missing_recordings({file: file}, progress=bar.update)
    if missing:
        more = [f"and {len(missing) - _NAMED:,} more"] if len(missing) > _NAMED else []
        with line_by_line(f"{len(missing):,} recordings cannot be read"):
            raise ValueError("\n".join(missing[:_NAMED] + more))


@contextlib.contextmanager
def line_by_line(so: str) -> Iterator[None]:
    """Shows an error of several lines as so many errors, of which the last says what follows from them."""
    try:
        yield
    except ValueError as error:
        lines = str(error).split("\n")
        if len(lines) == 1:
            raise
        for line in lines:
            show_error(ValueError(line))
        raise ValueError(so) from None


def inspect(args: Namespace) -> None:
    from dataclasses import replace

    from afn_model.data.records import parse_sample

    at, record, seconds, folder = find(args.file, args.which)
    try:
        sample = parse_sample(record, folder)
    except ValueError as error:
        raise ValueError(f"{args.file}[{at}]: {error}") from None
    sample = replace(sample, seconds=seconds or sample.seconds)
    print("\n".join(described(sample, f"{args.file}[{at}]", _processor(args.model))))


def find(file: str | Path, which: str) -> tuple[int, dict, float, str]:
    """(number, record, seconds of audio that the index knows, folder of the corpus) of a record by number or id.

    Raises:
        ValueError: no such file or record, or, of a corpus that is no JSON Lines file here, no index.
    """
    from afn_model.data.copies import RECORDS
    from afn_model.data.corpus_files import locate
    from afn_model.data.index import Corpus, folder_of
    from afn_model.data.records import parse

    corpus, files = None, locate(file)
    if not files.plain:
        corpus = Corpus(file)
    elif folder_of(file).is_dir():
        with contextlib.suppress(ValueError):  # an index of another state says nothing about this one
            corpus = Corpus(file)
    if which.isdecimal() and corpus and int(which) < len(corpus):
        return int(which), corpus[int(which)], corpus.seconds(int(which)), files.folder
    path = Path(file) if corpus is None or files.plain else corpus.index / RECORDS
    if not path.is_file():
        raise ValueError(f"{file}: no such file")
    count = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            wanted = which.isdecimal() and count == int(which)
            if wanted or which.encode() in line or b"\\" in line:
                record = parse(line)
                if wanted or str(record.get("id")) == which:
                    return count, record, corpus.seconds(count) if corpus else 0.0, files.folder
            count += 1
    raise ValueError(f"{file}: no record with number or id {which!r} among its {count}")


def described(sample: Sample, name: str, processor: AFNextProcessor | None) -> Iterator[str]:
    """The lines that show a sample; supervised text is marked with »."""
    from afn_model.data.records import audios_of

    yield f"{name}  {sample.id}"
    kinds = [f"{key} {getattr(sample, key)}" for key in ("axis", "task", "source") if getattr(sample, key)]
    length = (
        f"{sample.seconds:.2f} s of audio" if sample.seconds or not audios_of(sample) else "audio of unknown length"
    )
    yield ", ".join([*kinds, length])
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
    from afn_model.audio.tables import is_cell, split_cell
    from afn_model.storage import is_url

    file = split_path(audio.source)[0] if is_member(audio.source) else audio.source
    file = split_cell(file)[0] if is_cell(file) else file
    part = "" if audio.start is None and audio.end is None else f" {audio.start or 0:g} s to {_end(audio.end)}"
    return f"{audio.source}{part}{'' if is_url(file) or os.path.isfile(file) else ' (no such file)'}"


def _end(end: float | None) -> str:
    return "its end" if end is None else f"{end:g} s"


def _counted(sample: Sample, processor: AFNextProcessor) -> str:
    from afn_model.prompt.batch import IGNORED

    training = any(turn.role == "assistant" for turn in sample.turns)
    try:
        prepared = processor.prepare(sample.turns, training=training)
    except ValueError as error:
        text = processor.text_tokens(sample.turns, training=training)
        limit = processor.text_positions or processor.max_positions
        if limit is not None and text > limit:
            return f"{text} tokens of text, but the model's context is {limit}"
        return f"{text} tokens of text; its audio cannot be used: {error}"
    heard = int((prepared.ids == processor.sound_id).sum())
    learnt = int((prepared.labels != IGNORED).sum()) if training else 0
    return f"{len(prepared.ids)} tokens, {heard} of them audio, {learnt} learnt"


def step(args: Namespace) -> None:
    """Shows what was in a step, by the loader's plan; recordings are not opened."""
    from afn_model.data.loader import Loader
    from afn_model.data.steps import rows_of, text_of
    from afn_model.train.curriculum import read_curriculum
    from afn_model.train.reblend import reblend_settings
    from afn_model.train.run_layout import for_stage, read_layout
    from afn_model.train.stage_run import sp_size
    from afn_model.train.validate import check, data_config

    curriculum = read_curriculum(args.curriculum, args.data)
    stage, processor = curriculum[args.stage], _processor(args.model)
    rank, ranks = args.rank
    shared = sp_size(for_stage(read_layout(args.layout), stage), stage)
    check(curriculum, stage, ranks, shared)
    if stage.steps is not None and args.step >= stage.steps:
        raise ValueError(f"stage {stage.name}: step {args.step} of {stage.steps}, counted from 0")
    reblend = reblend_settings(stage.reblend, f"stage {stage.name}: reblend", stage.blend)
    if reblend is not None and reblend.rule != "fixed" and args.step >= reblend.every:
        why = f"the blend changes before step {reblend.every} by losses that a run finds"
        raise ValueError(f"stage {stage.name}: step {args.step} cannot be known: {why}")
    assert processor is not None
    loader = Loader(data_config(curriculum, stage), processor, dp_rank=rank // shared, dp_size=ranks // shared)
    for number, jobs in enumerate(loader.planned()):
        if number == args.step:
            rows = rows_of(loader, jobs)
            print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if args.json else text_of(rows, stage))
            return


def stats(args: Namespace) -> None:
    if args.curriculum:
        forecasts(args)
        return
    if not args.files:
        raise ValueError("neither a FILE nor a --curriculum (afn data stats --help says more)")
    from afn_model.data.stats import as_json, collect, draw, padding, text

    statistics = collect(args.files, _processor(args.model), args.sample)
    paddings = [padding(statistics.tokens, context, args.batch) for context in args.context if len(statistics.tokens)]
    pictures = draw(statistics, paddings, args.out) if args.out else []
    if args.json:
        facts = as_json(statistics, paddings) | {"pictures": [str(path) for path in pictures]}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print("\n".join([text(statistics, paddings), *(f"wrote {path}" for path in pictures)]))


def forecasts(args: Namespace) -> None:
    """Prints how long each stage of a curriculum is, before any of it runs."""
    from dataclasses import asdict

    from afn_model.train.curriculum import read_curriculum
    from afn_model.train.outlook import stage_forecast

    processor = _processor(args.model)
    if processor is None:
        raise ValueError("--curriculum needs --model, whose tokenizer counts the tokens")
    curriculum = read_curriculum(args.curriculum, args.data)
    for stage in curriculum.stages:
        found = stage_forecast(curriculum, stage, processor)
        if args.json:
            epochs = found.epochs if math.isfinite(found.epochs) else None
            facts = asdict(found) | {"epochs": epochs, "warnings": found.warnings}
            print(json.dumps({"stage": stage.name} | facts))
        else:
            print("\n  ".join([stage.name, *str(found).split("\n"), *(f"warning: {line}" for line in found.warnings)]))


def _processor(folder: str | None) -> AFNextProcessor | None:
    if folder is None:
        return None
    from afn_model.prompt.processor import AFNextProcessor

    return AFNextProcessor.from_pretrained(folder)
