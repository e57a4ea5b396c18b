"""A recogniser for tests and the demo: pocketsphinx, with a grammar of the few phrases that a world says.

It has the acoustic model of its package. Beyond its phrases it knows no word: it is no recogniser for other speech.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from afn_model.audio.decode import load_audio
from afn_model.audio.frames import SAMPLE_RATE

INSTALL = "pip install pocketsphinx"
FRAMES = 100  # a second
# Pauses cost nothing and a further word much: one that was not said is the more frequent mistake. It costs less where
# phrases have several words, which come together.
SEARCH = {"lw": 1.0, "silprob": 0.9}
FURTHER_WORD, FURTHER_OF_PHRASE = 1e-25, 1e-8
PAD = SAMPLE_RATE // 4  # samples of silence around what is heard


class PocketSphinx:
    """Transcribes parts of recordings: ``recogniser(path, start, end)`` gives words with their times.

    What it hears of a part depends on that part alone: it forgets after each.

    Args:
        phrases: words or sentences, which may follow on each other in any order.
        further: probability of one more of them; by default 1e-25 for words, 1e-8 for sentences.
        noise: standard deviation of white noise beneath what is heard, in steps of 16 bits: in the digital silence
            around a synthesiser's words it hears words that are not there.
        also: further pronunciations of words, in the phones of its dictionary.

    Raises:
        ValueError: no phrases, pocketsphinx is not installed, or a word that its dictionary does not have.
    """

    def __init__(
        self,
        phrases: Sequence[str],
        *,
        further: float | None = None,
        noise: float = 0.0,
        also: Mapping[str, str] | None = None,
    ):
        try:
            from pocketsphinx import Decoder  # pyright: ignore[reportMissingImports]
        except (ImportError, OSError):
            raise ValueError(f"pocketsphinx is not installed: {INSTALL}") from None
        told = sorted({" ".join(re.findall(r"[a-z']+", phrase.lower())) for phrase in phrases} - {""})
        if not told:
            raise ValueError("a grammar needs phrases")
        if further is None:
            further = FURTHER_OF_PHRASE if any(" " in phrase for phrase in told) else FURTHER_WORD
        self.noise = noise
        self.decoder: Any = Decoder(lm=None, samprate=float(SAMPLE_RATE), loglevel="FATAL", wip=further, **SEARCH)
        known = {word for phrase in told for word in phrase.split()}
        if unknown := sorted(word for word in known if self.decoder.lookup_word(word) is None):
            raise ValueError(f"pocketsphinx's dictionary has no {', '.join(unknown)}")
        for word, phones in (also or {}).items():
            self.decoder.add_word(f"{word}(2)", phones, False)
        with tempfile.NamedTemporaryFile("w", suffix=".gram", delete=False) as file:
            file.write(f"#JSGF V1.0;\ngrammar world;\npublic <said> = ( {' | '.join(told)} )+;\n")
        try:
            self.decoder.add_jsgf_file("world", file.name)
        finally:
            os.unlink(file.name)
        self.decoder.activate_search("world")

    def __call__(self, path: str | os.PathLike, start: float | None = None, end: float | None = None) -> list[dict]:
        """[{"word", "start", "end"}], in seconds of the recording.

        Raises:
            ValueError: what ``load_audio`` raises.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pcm = load_audio(path, start=start, end=end, dtype=torch.int16)
        return self.words(pcm, start or 0.0)

    def words(self, pcm: torch.Tensor, first: float = 0.0) -> list[dict]:
        """As of a recording, of samples [n] int16 at 16 kHz that begin at ``first`` seconds."""
        at, last = first - PAD / SAMPLE_RATE, first + len(pcm) / SAMPLE_RATE
        pcm = torch.nn.functional.pad(pcm, (PAD, PAD))
        if self.noise:
            beneath = self.noise * torch.randn(len(pcm), generator=torch.Generator().manual_seed(0))
            pcm = (pcm + beneath).round().clamp(-32768, 32767).to(torch.int16)
        self.decoder.reinit_feat()
        self.decoder.start_utt()
        self.decoder.process_raw(pcm.numpy().tobytes(), False, True)
        self.decoder.end_utt()
        if self.decoder.hyp() is None:
            return []
        found = []
        for part in self.decoder.seg():
            if part.word[0].isalpha():
                begin, stop = at + part.start_frame / FRAMES, at + (part.end_frame + 1) / FRAMES
                word = part.word.partition("(")[0]  # without the number of its pronunciation
                found.append({"word": word, "start": round(max(first, begin), 2), "end": round(min(last, stop), 2)})
        return found
