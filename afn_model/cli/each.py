"""The same question about every recording: long ones in pieces, answers as they come. Heavy imports wait for a run."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from afn_model.cli.messages import show_error, show_finish
from afn_model.cli.out_folder import OutFolder
from afn_model.cli.recordings import AnswerFile, named, named_bytes, part_about
from afn_model.infer.subtitles import FORMATS
from afn_model.infer.transcripts import TOKENS_A_SECOND, longest_piece, placed, transcript_tokens
from afn_model.infer.transcripts import timed as timed_piece

if TYPE_CHECKING:
    from afn_model.cli.session import AnswerBar
    from afn_model.infer.answer import Answer
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.session import Session

TOGETHER = 256  # recordings whose lengths are looked up at once, before the first of them is answered about
ROOM = 8  # batches' worth of audio that is asked about in one call of the engine


@dataclass
class Piece:
    """A part of a recording that is asked about by itself, in seconds, and the answer."""

    part: dict[str, Any]
    start: float
    end: float
    answer: Answer | None = None


@dataclass
class AskedRecording:
    """What is asked about, with its number among the given ones."""

    number: int
    file: str
    pieces: list[Piece] = field(default_factory=list)
    error: ValueError | None = None

    @property
    def seconds(self) -> float:
        return sum(piece.end - piece.start for piece in self.pieces)

    @property
    def complete(self) -> bool:
        return all(piece.answer is not None for piece in self.pieces)


class Printer:
    """Answers on standard output, in the given order."""

    done: tuple[str, ...] = ()

    def __init__(self, form: str, several: bool):
        self.form, self.several = form, several

    def write(self, row: dict[str, Any]) -> None:
        if self.form == "json":
            print(json.dumps(row, ensure_ascii=False), flush=True)
        elif self.form == "txt":
            (file,), answer = row["audio"], row["answer"]
            print(f"{file}: {answer}" if self.several else answer, flush=True)
        else:
            print(FORMATS[self.form](row), end="", flush=True)


@dataclass(frozen=True)
class EachRow:
    """What is written about a recording, or why there is nothing, how its text ended, and after how much."""

    file: str
    row: dict[str, Any] | ValueError
    finish: str = "stop"
    about: str = ""


def about_each(
    args: Namespace,
    question: str,
    *,
    spoken: bool = False,
    then: Callable[[dict[str, Any], float], dict[str, Any]] | None = None,
) -> int:
    """Asks the same question about every recording that the options name.

    Args:
        args: of the command line.
        question: what is asked.
        spoken: whether the answer is a transcript, whose length is that of the recording.
        then: makes what is written of an answer's row and the recording's seconds.

    Returns:
        the exit code: 1 where a recording could not be answered about, and the others were.
    """
    from afn_model.cli.session import as_json, sampling_params

    params = sampling_params(args)

    def rows(session: Session, files: list[str], bar: AnswerBar, ordered: bool) -> Iterator[EachRow]:
        asking = Asking(session, args, question, params, spoken)
        for one in in_order(asking.answers(files, bar)) if ordered else asking.answers(files, bar):
            try:
                if one.error is not None:
                    raise one.error
                answer = joined(one)
                row = as_json(answer, [one.file], question, args) | timed(one)
                row = row if then is None else then(row, one.seconds)
            except ValueError as error:
                yield EachRow(one.file, error)
            else:
                yield EachRow(one.file, row, answer.finish, ended(one))

    return over_each(args, question, rows)


def over_each(
    args: Namespace, question: str, rows: Callable[[Session, list[str], AnswerBar, bool], Iterator[EachRow]]
) -> int:
    """Writes what ``rows`` makes of the recordings that the options name; the exit code of ``about_each``.

    Args:
        args: of the command line.
        question: what is asked.
        rows: called with the session, the recordings without an answer, the progress line, and whether the given order
            counts.
    """
    from afn_model.audio.source import is_pipe
    from afn_model.cli.session import AnswerBar, open_session, set_end

    set_end(args)
    given = named(args.audio, args.list)
    out = destination(args, given, question)
    # What comes through a pipe is another recording every time, whatever the pipe's name.
    files = [file for file in given if file not in out.done or is_pipe(file)]
    if not files:
        if not args.quiet:
            print(f"afn: {args.out or args.out_dir} has answers about all {len(given)} recordings", file=sys.stderr)
        return 0
    failed = 0
    with open_session(args) as session, AnswerBar(len(files), quiet=args.quiet) as bar:
        for one in rows(session, files, bar, isinstance(out, Printer)):
            if isinstance(one.row, ValueError):
                if args.fail_fast:
                    raise one.row
                failed += 1
                show_error(one.row)
                continue
            out.write(one.row)
            if not args.quiet:
                show_finish(one.finish, one.about, one.file if len(given) > 1 else "")
    if failed and len(files) > 1:
        print(f"afn: {failed} of {len(files)} recordings could not be used", file=sys.stderr)
    return 1 if failed else 0


def destination(args: Namespace, given: dict[str, str], question: str) -> Printer | AnswerFile | OutFolder:
    """Where the answers go.

    Raises:
        ValueError: options that do not go together, or a place that holds something else.
    """
    from afn_model.cli.session import MAY_BE_GIVEN, same_in_all

    formats = args.format or (["json"] if args.json else ["txt"])
    same = dict.fromkeys(MAY_BE_GIVEN) | same_in_all(question, args)
    if args.out is not None and (args.out_dir is not None or (args.format or ["json"]) != ["json"]):
        raise ValueError("--out is one file of JSON lines; files in other formats need --out-dir")
    if args.out_dir is not None:
        return OutFolder(args.out_dir, formats, same, given, overwrite=args.overwrite)
    if args.out is not None:
        return AnswerFile(args.out, same, again=given if args.overwrite else ())
    if args.overwrite:
        raise ValueError("--overwrite needs --out or --out-dir")
    if len(formats) > 1 or (len(given) > 1 and formats[0] not in ("txt", "json")):
        raise ValueError(f"--format {','.join(formats)} makes several files: --out-dir says where")
    return Printer(formats[0], len(given) > 1)


class Asking:
    """One question about many recordings, in calls of the engine that have several batches' worth of audio each."""

    def __init__(self, session: Session, args: Namespace, question: str, params: SamplingParams, spoken: bool):
        from afn_model.infer.answer import BATCH_TOKENS
        from afn_model.prompt.conversation import read_conversation

        self.session, self.args, self.question, self.params = session, args, question, params
        self.spoken = spoken and args.max_new_tokens is None
        self.batch_tokens = args.batch_tokens or BATCH_TOKENS
        turns = read_conversation(self.conversation({"type": "audio", "path": "a recording"}))
        fits = longest_piece(session.processor, turns, params.max_new_tokens, spoken=self.spoken)
        # Where not even a second fits, or nothing may be cut, the error is the model's.
        self.longest = min(math.inf if args.strict or fits < 1 else fits, args.chunk_seconds or math.inf)

    def conversation(self, part: dict[str, Any]) -> list[dict]:
        system = [] if self.args.system is None else [{"role": "system", "content": self.args.system}]
        return [*system, {"role": "user", "content": [part, {"type": "text", "text": self.question}]}]

    def answers(self, files: Sequence[str], bar: AnswerBar) -> Iterator[AskedRecording]:
        """Recordings with their answers, or their errors, as they come."""
        for group in self.groups(files, bar):
            yield from (one for one in group if one.error is not None)
            yield from self.answered([one for one in group if one.error is None], bar)

    def groups(self, files: Sequence[str], bar: AnswerBar) -> Iterator[list[AskedRecording]]:
        group: list[AskedRecording] = []
        most = ROOM * self.batch_tokens / TOKENS_A_SECOND
        for number, file in enumerate(files):
            if not group:
                bar.on_progress("read", [number], 0, 1)
            group.append(self.recording(number, file))
            if len(group) == TOGETHER or sum(one.seconds for one in group) > most:
                yield group
                group = []
        if group:
            yield group

    def recording(self, number: int, file: str) -> AskedRecording:
        """A recording in pieces that the model takes."""
        from afn_model.audio.pieces import cut, seconds_of
        from afn_model.audio.recording import Audio
        from afn_model.audio.source import STDIN, is_pipe, read_source

        start, end, found = self.args.start, self.args.end, AskedRecording(number, file)
        try:
            part = part_about(file, start, end)
            if file != STDIN and is_pipe(file):
                part = {"type": "audio", "audio": named_bytes(bytes(read_source(file).data), file)}
            audio = Audio(part.get("audio", part.get("path")), start=start, end=end)
            seconds = seconds_of(audio)
            spans = [((start or 0.0), (start or 0.0) + seconds)]
            if seconds > self.longest:
                spans = cut(audio, self.longest, seconds)
        except ValueError as error:
            found.error = error
            return found
        for place, (first, last) in enumerate(spans):
            bounds = {"start": start if place == 0 else first, "end": end if place + 1 == len(spans) else last}
            found.pieces.append(Piece(part | bounds, first, last))
        return found

    def answered(self, group: list[AskedRecording], bar: AnswerBar) -> Iterator[AskedRecording]:
        from afn_model.hashing import key

        pieces = [(one, piece) for one in group for piece in one.pieces]
        if not pieces:
            return
        params = self.params
        if self.spoken:
            longest = max(piece.end - piece.start for _, piece in pieces)
            params = replace(params, max_new_tokens=transcript_tokens(longest))
        if params.seed is not None and group[0].number:  # other draws in every call
            params = replace(params, seed=key(params.seed, group[0].number) >> 1)
        # By default as many as there is room for if every answer is as long as it may be.
        together = self.args.batch or max(1, self.batch_tokens // max(1, params.max_new_tokens))

        def on_progress(stage: str, places: list[int], done: int, total: int) -> None:
            bar.on_progress(stage, [pieces[place][0].number for place in places], done, total)

        for place, found in self.session.answers(
            [self.conversation(piece.part) for _, piece in pieces],
            params,
            batch_size=together,
            batch_tokens=self.batch_tokens,
            on_progress=on_progress,
        ):
            one, piece = pieces[place]
            bar.done(1 / len(one.pieces))
            if isinstance(found, ValueError):
                if one.error is None:
                    one.error = found
                    yield one
            else:
                piece.answer = found
                if one.complete:
                    yield one


def in_order(found: Iterator[AskedRecording]) -> Iterator[AskedRecording]:
    """Recordings in the given order; errors at once."""
    waiting: dict[int, AskedRecording | None] = {}
    following = 0
    for one in found:
        if one.error is not None:
            yield one
        waiting[one.number] = None if one.error is not None else one
        while following in waiting:
            ready = waiting.pop(following)
            following += 1
            if ready is not None:
                yield ready


def joined(one: AskedRecording) -> Answer:
    """The answer about a whole recording, of those about its pieces; times in it count from its beginning."""
    answers = [piece.answer for piece in one.pieces if piece.answer is not None]
    pieces = zip(one.pieces, answers, strict=True)
    texts = [placed(answer.text, piece.start, piece.end) for piece, answer in pieces]
    if len(answers) == 1:
        return replace(answers[0], text=texts[0])
    return replace(
        answers[0],
        text="\n".join(text.strip() for text in texts),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        answer_tokens=sum(answer.answer_tokens for answer in answers),
        finish=next((answer.finish for answer in answers if answer.finish != "stop"), "stop"),
        seconds={name: sum(answer.seconds[name] for answer in answers) for name in answers[0].seconds},
        together=max(answer.together for answer in answers),
    )


def ended(one: AskedRecording) -> str:
    """After how many tokens an answer ended, or in how many pieces the model did not end it."""
    answers = [piece.answer for piece in one.pieces if piece.answer is not None]
    if len(answers) == 1:
        return f"after {answers[0].answer_tokens} tokens"
    return f"in {sum(answer.finish != 'stop' for answer in answers)} of {len(answers)} pieces"


def timed(one: AskedRecording) -> dict[str, Any]:
    """``segments`` with the times of the model, or one for each piece that has no usable ones, and which of these."""
    from afn_model.infer.timestamps import Segment
    from afn_model.scoring.text import answer_in

    segments, statuses = list[Segment](), list[str]()
    for piece in one.pieces:
        assert piece.answer is not None
        found = timed_piece(piece.answer.text, piece.start, piece.end)
        statuses.append(found.status)
        segments += found.segments
        if found.status != "model" and (text := answer_in(piece.answer.text)):
            segments.append(Segment(piece.start, piece.end, text))
    rows = [{"start": round(s.start, 3), "end": round(s.end, 3), "text": s.text} for s in segments]
    return {"segments": rows, "times": ", ".join(dict.fromkeys(statuses))}
