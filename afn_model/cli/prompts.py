"""The question that the options of ``afn transcribe`` ask."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from afn_model.prompt import questions

if TYPE_CHECKING:
    from afn_model.prompt.processor import AFNextProcessor


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


def speech_question(args: Namespace, processor: AFNextProcessor) -> str:
    """The question of ``afn transcribe`` for a speech decoder: its task, where the tokenizer has tokens of tasks.

    Whisper's own translations are into English, and what it is told is the language that is spoken; a tokenizer with
    more tasks than Whisper's is told the language that is written.

    Raises:
        ValueError: a language without a token, options that a speech decoder has no task for.
    """
    from afn_model.prompt.speech_task import SpeechTask

    question, tokenizer = transcribing(args), processor.tokenizer
    if tokenizer.token_to_id("<|transcribe|>") is None:
        return question
    if args.task == "lyrics" or args.prompt:
        raise ValueError(f"{args.model}: a speech decoder has no {'lyrics' if args.task == 'lyrics' else '--prompt'}")
    language = args.language or "en"
    if args.task == "translate":
        if tokenizer.token_to_id("<|caption|>") is not None:
            language = args.to
        elif questions.code(args.to) != "en":
            raise ValueError(f"--to {args.to}: Whisper translates into English")
    task = SpeechTask("speakers" if args.diarize else args.task, questions.code(language))
    task.check(tokenizer)
    return task.text


def caption_task(model: str) -> str | None:
    """The question of ``afn caption`` for a folder of the speech decoder whose tokenizer has a token for it."""
    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.prompt.speech_task import SpeechTask
    from afn_model.weights.speech import is_speech

    if not is_speech(model) or AFNextProcessor.from_pretrained(model).tokenizer.token_to_id("<|caption|>") is None:
        return None
    return SpeechTask("caption").text
