"""``afn transcribe`` with an encoder that has a decoder of its own: windows, word times, and speech as it comes."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.pieces import LONGEST as WHOLE
from afn_model.audio.recording import Audio, load
from afn_model.audio.source import STDIN, is_pipe, read_source
from afn_model.cli.each import EachRow, over_each
from afn_model.cli.recordings import named, named_bytes, part_about
from afn_model.cli.session import AnswerBar, as_json, open_session, set_end
from afn_model.infer.answer import Answer
from afn_model.infer.long_speech import LONGEST, LongText, long_texts, segments_of_words
from afn_model.infer.speech_stream import SpeechStream
from afn_model.infer.speech_writer import SpeechWriter
from afn_model.infer.word_times import TimedWord, alignment_heads

if TYPE_CHECKING:
    from afn_model.session import Session

TOGETHER = 8  # windows that are heard together
PIECE = SAMPLE_RATE // 4  # samples that are read of a stream at once


def write_down(args: Namespace, question: str) -> int:
    """Writes down what is said in every recording; the exit code as of ``about_each``."""
    if args.temperature:
        raise ValueError("the speech decoder writes down what is likeliest: temperature 0")
    given = {"--repetition-penalty": args.repetition_penalty, "--seed": args.seed}
    given["--top-p"] = None if args.top_p == 1 else args.top_p
    if found := next((name for name, value in given.items() if value is not None), None):
        raise ValueError(f"{found} is of no use for {args.model}, an encoder with a decoder of its own")
    if args.stream:
        return write_stream(args, question)
    longest, started = min(args.chunk_seconds or LONGEST, LONGEST), dict[str, float]()

    def rows(session: Session, files: list[str], bar: AnswerBar, _: bool) -> Iterator[EachRow]:
        def recordings() -> Iterator[tuple[str, Tensor | ValueError]]:
            for number, file in enumerate(files):
                bar.on_progress("read", [number], 0, 1)
                started[file] = time.perf_counter()
                try:
                    yield file, recording(file, args)
                except ValueError as error:
                    yield file, error

        options = {"longest": longest, "words": bool(args.words), "batch": args.batch or TOGETHER}
        for file, found in long_texts(writer(session, args, question), recordings(), **options):
            bar.done()
            if isinstance(found, ValueError):
                yield EachRow(file, ValueError(f"{file}: {found}") if file not in str(found) else found)
                continue
            answer = answer_of(found, time.perf_counter() - started[file])
            row = as_json(answer, [file], question, args) | times_of(found, args)
            windows = sum(one.finish != "stop" for one in found.written)
            yield EachRow(file, row, answer.finish, f"in {windows} of {len(found.written)} windows")

    return over_each(args, question, rows)


def write_stream(args: Namespace, question: str) -> int:
    """Prints words of one recording as they are settled."""
    given = {"--format": args.format, "--out-dir": args.out_dir, "--out": args.out, "--json": args.json or None}
    given["--words"] = args.words
    if found := next((name for name, value in given.items() if value is not None), None):
        raise ValueError(f"--stream prints text, without {found}")
    set_end(args)
    files = list(named(args.audio, args.list))
    if len(files) != 1:
        raise ValueError(f"--stream is for one recording, got {len(files)}")
    longest = min(args.chunk_seconds or LONGEST, LONGEST)
    with open_session(args) as session:
        stream = SpeechStream(writer(session, args, question), longest=longest)
        try:
            for piece in stream_pieces(files[0], args):
                show(stream.push(piece), len(stream.words))
            show(stream.close(), len(stream.words))
        except ValueError as error:
            raise error if files[0] in str(error) else ValueError(f"{files[0]}: {error}") from None
    print(flush=True)
    return 0


def show(words: list[TimedWord], all_so_far: int) -> None:
    """Prints words; ``all_so_far`` counts them and those before."""
    text = "".join(f"{' ' * one.spaced}{one.text}" for one in words)
    print(text.lstrip() if len(words) == all_so_far else text, end="", flush=True)


def stream_pieces(file: str, args: Namespace) -> Iterator[Tensor]:
    """Quarters of a second of a recording, or of standard input as they come.

    Raises:
        ValueError: a part of standard input, or a terminal.
    """
    if file != STDIN:
        yield from recording(file, args).split(PIECE)
        return
    if args.start is not None or args.end is not None:
        raise ValueError("--start and --end are for recordings that are there, not for a stream")
    if sys.stdin.isatty():
        raise ValueError("-: standard input is a terminal; send 16-bit PCM of 16 kHz through a pipe")
    rest = b""
    while data := sys.stdin.buffer.read(2 * PIECE):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        if whole:
            yield torch.frombuffer(bytearray(data[:whole]), dtype=torch.int16)


def writer(session: Session, args: Namespace, question: str) -> SpeechWriter:
    return SpeechWriter(
        session.speech,
        session.processor,
        question,
        system=args.system,
        beams=args.beams or 1,
        length_penalty=1.0 if args.length_penalty is None else args.length_penalty,
        most=args.max_new_tokens,
        heads=alignment_heads(session.folder, session.speech.config),
    )


def recording(file: str, args: Namespace) -> Tensor:
    """[n] samples of a recording, or of the part that the options say."""
    part = part_about(file, args.start, args.end)
    if file != STDIN and is_pipe(file):
        part = {"audio": named_bytes(bytes(read_source(file).data), file)}
    audio = Audio(part.get("audio", part.get("path")), start=args.start, end=args.end)
    return load(audio, strict=args.strict, max_seconds=WHOLE)


def answer_of(found: LongText, seconds: float) -> Answer:
    return Answer(
        text=found.text,
        prompt_tokens=sum(one.prompt for one in found.written),
        answer_tokens=sum(len(one.tokens) for one in found.written),
        finish=found.finish,  # type: ignore[arg-type]
        seconds={"total": seconds},
        together=1,
    )


def times_of(found: LongText, args: Namespace) -> dict[str, Any]:
    """Segments with their times, those of words where they are wanted, and what became of the windows."""
    again = sum(one.again for one in found.written)
    windows = {"windows": {"count": len(found.written), "again": again, "circles": found.circles}}
    if not args.words:
        return {"segments": [_timed(s.start, s.end, text=s.text) for s in found.segments], "times": "none"} | windows
    rows = [
        _timed(one.start, one.end, text=one.text) | {"words": [_timed(w.start, w.end, word=w.text) for w in words]}
        for one, words in segments_of_words(found.words)
    ]
    return {"segments": rows, "times": "attention"} | windows


def _timed(start: float, end: float, **text: str) -> dict[str, Any]:
    return {"start": round(start, 3), "end": round(end, 3)} | text
