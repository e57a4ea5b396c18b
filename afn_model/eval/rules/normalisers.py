"""What is the same said: texts as word error rates compare them, by rules that have a name and a version."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from afn_model.eval.score import RuleError

WHISPER = "0.1.15"  # of whisper_normalizer, which all rules here were compared at

# The Open ASR leaderboard's rule for English (huggingface/open_asr_leaderboard@d1e99b2, normalizer/), as what it does
# unlike Whisper's.
OPENASR_FILLERS = "hmm mm mhm mmm uh um ah aha ahh ahm eh ehehe em hm huh hum mhum uhm umm uhuh"
OPENASR_WITHOUT = "kinda sorta dunno cause"  # words that whisper_normalizer spells out, unlike OpenAI's own package
OPENASR_IS = "it he she what that who here there how when where why this"  # before 's; others keep an s alone
OPENASR_SPELLINGS = """
ok=okay kay=okay etcetera=etc archaeological=archeological cancellation=cancelation cancellations=cancelations
flyer=flier mm=hmm travelogue=travelog travelogues=travelogs archaeology=archeology pummelled=pummeled
pummelling=pummeling snowploughs=snowplows
"""
OPENASR_SPELLINGS_WITHOUT = "archeological cancelation cancelations travelog travelogs"
OPENASR_COMPOUNDS = """
etc=et cetera; alright=al right; alright=all right; however=how ever; wifi=wi fi; hifi=hi fi; lofi=lo fi; scifi=sci fi;
email=e mail; ebook=e book; ecommerce=e commerce; xray=x ray; tshirt=t shirt; am=a m; pm=p m; okay=o k
"""
# One way to write a name, then the others.
OPENASR_NAMES = """
aaron aron|alfonso alphonso|alison allison alyson|allen alan allan|anne ann|anthony antony|arthur artur|brett bret
brian bryan|bridget bridgette|caitlin katelyn kaitlyn kaitlin|carl karl|carol carrol carole carroll
catherine katherine kathryn catharine|cathy kathy|charlie charly charley|chris kris
christina kristina|christopher kristopher cristopher|colin collin|deborah devorah|dennis denis|dominic dominick
douglas douglass|dylan dillon|eric erik erick|fatima fatimah|frederick frederik fredrick|gail gayle|gary garry
greg gregg|henry henri|ivonne yvonne|jackie jacky|jamie jaime|jason jayson|jeff geoff
jeffrey geoffrey jeffery|joanne joann joane|john jon|jonathan johnathan jonathon|joseph josef|karen caren caryn karin
kelly kellye kelli kelley|kevin kevan|kristin kristen|laurie lori|lawrence laurence|lee leigh|leslie lesley|lily lilly
linda lynda|lindsay linsey lindsey|louis lewis|lucas lukas|lynn lynne|mark marc|martin martyn|matthew mathew
mcarthur macarthur|mccarthy macarthy maccarthy|mccartney macartney|mcdonald macdonald|mcgowan macgowan
mcintosh macintosh|mcintyre macintyre
mckay mackay|mckenzie mackenzie|mclean maclean|mcleod macleod|mcmillan macmillan|mcnamara macnamara
megan meghan|michael micheal|michelle michele|miriam myriam
mohammed mohamad mohamed mohammad muhammad muhamad muhammed mouhamed mouhamad mahomet|molly mollie|natalie nathalie
neil neal|nicholas nicolas|nicole nikole|patrick patrik|peter pieter|philip phillip|rachel rachael|rajiv rajeev
rebecca rebekah|rob robb|robin robyn|roger rodger|ronda rhonda|russell russel|sally sallie|sarah sara|sean shaun shawn
shane shayne|sherry sheri cheri sherrie|simon symon|stacy stacey stacie|steven stephen|stuart stewart|susanne suzanne
teresa theresa|terry terri|thomas tomas|toby tobey|tony toni|tracy tracey tracie|veronica veronika|victor viktor
victoria viktoria|walter walther|yousef yusuf yusef|zach zak|zachary zackary zachery
"""

# SpeechColab/GigaSpeech@44289e4, utils/gigaspeech_scoring.py: what is no word there.
GIGASPEECH_LEFT_OUT = """
UH UHH UM EH MM HM AH HUH HA ER OOF HEE ACH EEE EW
<UNK> <COMMA> <PERIOD> <QUESTIONMARK> <EXCLAMATIONPOINT> <SIL> <NOISE> <MUSIC> <OTHER>
"""


@dataclass(frozen=True)
class Normaliser:
    """A rule for texts.

    Args:
        name: with the version of what is used here, which a report carries.
        apply: text -> text. What it fails on, as whisper_normalizer does on numbers of thousands of digits, only
            becomes lower case.
    """

    name: str
    apply: Callable[[str], str]

    def __call__(self, text: str) -> str:
        try:
            return self.apply(text)
        except (ArithmeticError, AssertionError, LookupError, ValueError):
            return text.lower()


@cache
def normaliser(name: str, language: str = "en") -> Normaliser:
    """A rule by the name that the table gives it.

    Args:
        name: one of ``NORMALISERS``.

            - "whisper@0.1.15": that of Whisper's paper as whisper_normalizer has it; English has rules of its own,
              other languages lose case and punctuation;
            - "whisper-marks@0.1.15": the same, without the loss of vowels where these are marks, as in Thai and Hindi;
            - "openasr@d1e99b2": the Open ASR leaderboard's, for English alone;
            - "gigaspeech-official@44289e4": upper case without fillers and tags;
            - "none": the text as it is.
        language: two letters.

    Raises:
        RuleError: no such rule, or none for the language.
        ImportError: whisper_normalizer is not installed.
    """
    kind = name.partition("@")[0]
    if name not in NORMALISERS:
        raise RuleError(f"{name}: no such normaliser; there are {', '.join(NORMALISERS)}")
    if kind == "none":
        return Normaliser(name, str)
    if kind == "gigaspeech-official":
        return Normaliser(name, gigaspeech)
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    found = version("whisper_normalizer")
    if kind == "openasr":
        if language != "en":
            raise RuleError(f"{name} is for English, got {language!r}: use whisper@{WHISPER} or none")
        other = "" if found == WHISPER else f" (whisper_normalizer {found}, not {WHISPER})"
        return Normaliser(name + other, openasr(EnglishTextNormalizer()))
    if kind == "whisper-marks":
        return Normaliser(f"{kind}@{found}", BasicTextNormalizer(preserve_marks=True))
    if language == "en":
        return Normaliser(f"{kind}@{found}", EnglishTextNormalizer())
    return Normaliser(f"{kind}@{found}, its basic rules", BasicTextNormalizer())


NORMALISERS = ("whisper@0.1.15", "whisper-marks@0.1.15", "openasr@d1e99b2", "gigaspeech-official@44289e4", "none")


def openasr(whisper: Any) -> Callable[[str], str]:
    """The leaderboard's rule, made of Whisper's for English, which takes numbers and spellings in this order:

    compounds -> numbers -> spellings -> names -> acronyms, between Whisper's other steps.

    Args:
        whisper: an ``EnglishTextNormalizer`` of whisper_normalizer, which becomes the rule.
    """
    whisper.ignore_patterns = rf"\b({'|'.join(OPENASR_FILLERS.split())})\b"
    left_out = {rf"\b{word}\b" for word in OPENASR_WITHOUT.split()}
    rules = {pattern: said for pattern, said in whisper.replacers.items() if pattern not in left_out}
    is_said = (rf"\b({'|'.join(OPENASR_IS.split())})'s\b", r"\1 is")
    whisper.replacers = dict(is_said if pattern == r"'s\b" else (pattern, said) for pattern, said in rules.items())
    pairs = [pair.strip().partition("=") for pair in OPENASR_COMPOUNDS.split(";")]
    compounds = [(re.compile(r"\b" + apart.replace(" ", r"\s+") + r"\b"), joined) for joined, _, apart in pairs]
    spellings = whisper.standardize_spellings.mapping
    for word in OPENASR_SPELLINGS_WITHOUT.split():
        spellings.pop(word, None)
    spellings |= {word: said for word, _, said in (pair.partition("=") for pair in OPENASR_SPELLINGS.split())}
    groups = [group.split() for group in re.split(r"[|\n]", OPENASR_NAMES.strip())]
    names = {other: first for first, *others in groups for other in others}
    numbers = whisper.standardize_numbers

    def before_and_numbers(text: str) -> str:
        for pattern, joined in compounds:
            text = pattern.sub(joined, text)
        return numbers(text)

    def words(text: str) -> str:
        spelt = (spellings.get(word, word) for word in text.split())
        return " ".join(acronyms([names.get(word, word) for word in spelt]))

    whisper.standardize_numbers, whisper.standardize_spellings = before_and_numbers, words
    return whisper


def acronyms(words: list[str]) -> list[str]:
    """Letters and digits that stand alone become one word: ["b", "b", "c"] -> ["bbc"]; where "a" or "i" is among them,
    three or more."""
    found: list[str] = []
    run: list[str] = []
    for word in [*words, ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        least = 3 if {"a", "i"} & set(run) else 2
        found += ["".join(run)] if len(run) >= least else run
        run = []
        found.append(word)
    return found[:-1]


def gigaspeech(text: str) -> str:
    """Upper case, hyphens as spaces, fillers and tags left out."""
    left_out = GIGASPEECH_LEFT_OUT.split()
    return " ".join(word for word in text.upper().replace("-", " ").split() if word not in left_out)
