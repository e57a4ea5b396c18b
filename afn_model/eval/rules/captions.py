"""CIDEr-D of captions, with words by coco-caption's tokeniser where it is installed and by ours otherwise."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.cider import LONGEST, SIGMA, TOKENISER, cider_d, tokens
from afn_model.eval.score import Part, Score, Tools, ratio

JAR = "stanford-corenlp-3.4.1.jar"
SECONDS = 600.0  # that the tokeniser may take


def cider(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Mean CIDEr-D over recordings as coco-caption prints it: 0 to 10, and about 0.5 for good systems on Clotho.

    Papers on audio captions print this number or 100 times it. CoNeTTE (arXiv:2309.00454) has a SPIDEr, the mean of
    CIDEr-D and SPICE, of 30.5 % on Clotho and 44.1 % on AudioCaps, which leaves CIDEr-D 0.61 and 0.88 at most;
    AF-Next's 0.52 and 0.74 are numbers of this kind. Whether an n-gram is rare is counted in the references of the
    recordings that are scored: a part of a set has other scores than it has in the whole. An item without an output is
    a caption of no words, which has 0; one without references is left out.

    Args:
        answered: items with references.
        tools: not used.
    """
    scored = [place for place, one in enumerate(answered) if one.item.references]
    captions = [answered[place].text or "" for place in scored]
    references = [answered[place].item.references for place in scored]
    words, tokeniser, notes = _words([*captions, *(text for some in references for text in some)])
    said, rest = words[: len(scored)], iter(words[len(scored) :])
    found = cider_d(said, [[next(rest) for _ in some] for some in references])
    parts: list[Part | None] = [None] * len(answered)
    for place, value in zip(scored, found, strict=True):
        parts[place] = (float(value), 1.0)
    if len(scored) == 1:
        notes.append("one recording alone always has a CIDEr-D of 0")
    signature = f"CIDEr-D, 0 to 10|tok:{tokeniser}|n:{LONGEST}|sigma:{SIGMA:g}|df:{len(scored)} recordings"
    empty = sum(not one for one in said)
    read = [f"caption: {one.text}" if one.text else "none" for one in answered]
    return ratio(answered, parts, unparsed=empty, extracted=read, signature=signature, notes=notes)


def _words(texts: list[str]) -> tuple[list[list[str]], str, list[str]]:
    """Words of each text, the tokeniser's name and notes about it."""
    try:
        return ptb(texts), "ptb-corenlp-3.4.1", []
    except ImportError:
        why = "pycocoevalcap is not installed (pip install pycocoevalcap, and a Java)"
    except OSError as error:
        why = f"CoreNLP's tokeniser did not run ({error})"
    return [tokens(text) for text in texts], TOKENISER, [f"words are cut by our tokeniser: {why}"]


def ptb(texts: Sequence[str]) -> list[list[str]]:
    """Words of texts by CoreNLP's tokeniser as coco-caption runs it and drops punctuation, but with every text in a
    line of its own whatever breaks lines in it, and nothing written into the package's folder.

    Raises:
        ImportError: pycocoevalcap is not installed.
        OSError: no Java, or it fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer  # pyright: ignore[reportMissingImports]

    java = shutil.which("java")
    if java is None:
        raise OSError("there is no java on the path")
    jar = Path(ptbtokenizer.__file__).with_name(JAR)
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts).encode(errors="replace")
    try:
        done = subprocess.run(command, input=lines, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise OSError(f"no end within {SECONDS:g} s") from None
    found = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(found) != len(texts):
        told = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise OSError(f"{len(found)} lines for {len(texts)} captions: {told[0]}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)  # codespell:ignore
    return [[word for word in line.split() if word not in dropped] for line in found]
