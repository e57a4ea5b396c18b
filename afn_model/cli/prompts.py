"""The prompts that the released models were trained on."""

from __future__ import annotations

from argparse import Namespace

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
        raise ValueError(f"--language {name}: no such code; give the language's English name")
    return found or name[:1].upper() + name[1:]


def transcribing(args: Namespace) -> str:
    """The question of ``afn transcribe``.

    Raises:
        ValueError: options that no prompt of the model has room for.
    """
    if args.diarize and args.task != "transcribe":
        raise ValueError(f"--diarize is for --task transcribe, not {args.task}")
    if args.task == "translate":
        if args.language is None:
            raise ValueError("--task translate needs --language, what is spoken: the model's prompt names both")
        said = f"Translate any speech you hear from {language(args.language)} into {language(args.to)}."
    elif args.to != "en":
        raise ValueError("--to is for --task translate")
    else:
        said = LYRICS if args.task == "lyrics" else DIARIZE if args.diarize else TRANSCRIBE
        if args.language is not None:
            said += f" The language is {language(args.language)}."
    return said if args.prompt is None else f"{said} {args.prompt}"
