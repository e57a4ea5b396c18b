"""The question that the options of ``afn transcribe`` ask."""

from __future__ import annotations

from argparse import Namespace

from afn_model.prompt import questions


def transcribing(args: Namespace) -> str:
    """The question of ``afn transcribe``.

    Raises:
        ValueError: options that no prompt of the model has room for.
    """
    if args.diarize and args.task != "transcribe":
        raise ValueError(f"--diarize is for --task transcribe, not {args.task}")
    for option, name in (("--language", args.language), ("--to", args.to)):
        try:
            questions.language(name or "en")
        except ValueError as error:
            raise ValueError(f"{option} {error}") from None
    if args.task == "translate":
        if args.language is None:
            raise ValueError("--task translate needs --language, what is spoken: the model's prompt names both")
        return questions.translation(args.language, args.to, more=args.prompt)
    if args.to != "en":
        raise ValueError("--to is for --task translate")
    languages = [] if args.language is None else [args.language]
    if args.task == "lyrics":
        return questions.lyrics(languages, more=args.prompt)
    return questions.transcription(languages, diarize=args.diarize, more=args.prompt)
