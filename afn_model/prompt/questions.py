"""The questions that the released models were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

TRANSCRIBE = "Transcribe the input speech."
DIARIZE = (
    "Transcribe the input audio. If multiple speakers are present, provide diarized transcripts with speaker labels."
)
LYRICS = "Generate a lyrics transcription from the input song."
CAPTION = "Generate a caption for the input audio."
DETAILED_CAPTION = (
    "Generate a detailed caption for the input audio. "
    "In the caption, transcribe all spoken content by all speakers in the audio precisely."
)
THINK = "Reason step by step with timestamps, then give the final answer."  # behind any question
# ISO 639-1, as Whisper's users name languages; a name that is not among them is taken as it stands.
_CODES = """
af=Afrikaans ar=Arabic az=Azerbaijani be=Belarusian bg=Bulgarian bn=Bengali bs=Bosnian ca=Catalan cs=Czech
cy=Welsh da=Danish de=German el=Greek en=English es=Spanish et=Estonian eu=Basque fa=Persian fi=Finnish
fr=French ga=Irish gl=Galician gu=Gujarati he=Hebrew hi=Hindi hr=Croatian hu=Hungarian hy=Armenian
id=Indonesian is=Icelandic it=Italian ja=Japanese ka=Georgian kk=Kazakh km=Khmer kn=Kannada ko=Korean
lo=Lao lt=Lithuanian lv=Latvian mk=Macedonian ml=Malayalam mn=Mongolian mr=Marathi ms=Malay my=Burmese
ne=Nepali nl=Dutch no=Norwegian pa=Punjabi pl=Polish pt=Portuguese ro=Romanian ru=Russian si=Sinhala
sk=Slovak sl=Slovenian sq=Albanian sr=Serbian sv=Swedish sw=Swahili ta=Tamil te=Telugu th=Thai tl=Tagalog
tr=Turkish uk=Ukrainian ur=Urdu uz=Uzbek vi=Vietnamese yo=Yoruba zh=Chinese zu=Zulu
"""
LANGUAGES = {code: name for code, _, name in (pair.partition("=") for pair in _CODES.split())}


def language(name: str) -> str:
    """The English name of a language, by its two-letter code or as it stands.

    Raises:
        ValueError: a code that is none.
    """
    found = LANGUAGES.get(name.lower())
    if found is None and len(name) < 3:
        raise ValueError(f"{name}: no such code; give the language's English name")
    return found or name[:1].upper() + name[1:]


def code(name: str) -> str:
    """The code of a language, by its English name or as it stands: "german" and "de" are de."""
    names = {full.lower(): short for short, full in LANGUAGES.items()}
    return names.get(name.lower(), name.lower())


def transcription(languages: Sequence[str] = (), *, diarize: bool = False, more: str | None = None) -> str:
    """The question whose answer is a transcript.

    Args:
        languages: that may be spoken, as ``language`` reads them.
        diarize: say who speaks, ``[Speaker 1] ...``.
        more: text behind the question, such as names that may come up.

    Raises:
        ValueError: a code that is none.
    """
    return _with(DIARIZE if diarize else TRANSCRIBE, languages, more)


def lyrics(languages: Sequence[str] = (), *, more: str | None = None) -> str:
    """The question whose answer is a song's lyrics; arguments and errors as of ``transcription``."""
    return _with(LYRICS, languages, more)


def translation(source: str | None, into: str = "en", *, more: str | None = None) -> str:
    """The question whose answer is a translation of what is said.

    Args:
        source: language that is spoken; without it the question names one language alone, which no released model was
            trained on.
        into: language of the answer.
        more: text behind the question.

    Raises:
        ValueError: a code that is none.
    """
    of = "" if source is None else f" from {language(source)}"
    return _with(f"Translate any speech you hear{of} into {language(into)}.", (), more)


def choose(question: str, choices: Sequence[str]) -> str:
    """A multiple-choice question in the form of Audio Flamingo 2, 3 and Next (NVIDIA/audio-flamingo, static/mmar.json).

    Raises:
        ValueError: there are more choices than letters.
    """
    return f"{question} Choose the correct option from the following options:\n{options(choices)}"


def options(choices: Sequence[str], form: str = "({}) {}") -> str:
    """A line for each choice: ``(A) dog``.

    Raises:
        ValueError: there are more choices than letters.
    """
    if len(choices) > len(ascii_uppercase):
        raise ValueError(f"{len(choices)} choices are more than the {len(ascii_uppercase)} letters")
    return "\n".join(form.format(letter, choice) for letter, choice in zip(ascii_uppercase, choices, strict=False))


def described(caption: str, number: int, seconds: float) -> str:
    """What a text model reads in the place of a recording; nothing in it is a token of a prompt's own."""
    caption = caption.replace("<|", "< |").replace("<sound", "< sound")
    return f"[Recording {number}, {seconds:.1f} s. What is to be heard in it: {caption.strip()}]"


def _with(question: str, languages: Sequence[str], more: str | None) -> str:
    if languages:
        question += f" The language is {' or '.join(map(language, languages))}."
    return f"{question} {more}" if more else question
