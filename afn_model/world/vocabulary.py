"""The closed vocabulary of utterances: sixteen words that four languages have in common, said by men and women."""

from __future__ import annotations

import functools

from afn_model.world.words import PITCHES, RATES, VARIANTS, Speaker, WordBank, build_bank, voice_of

# The word at a place means the same in every language.
VOCABULARY = {
    language: tuple(text.split())
    for language, text in {
        "en": "one three four five seven eight left open coffee window house cat sun red green music",
        "es": "uno tres cuatro cinco siete ocho izquierda abre café ventana casa gato sol rojo verde música",
        "de": "eins drei vier fünf sieben acht links öffne kaffee fenster haus katze sonne rot grün musik",
        "fr": "un trois quatre cinq sept huit gauche ouvre café fenêtre maison chat soleil rouge vert musique",
    }.items()
}
# What is said to enrol a voice, and nowhere else.
ENROLMENT = ("alpha", "bravo", "delta", "kilo", "tango")
ACCENT = {"en": "en-us", "es": "es", "de": "de", "fr": "fr-fr"}  # en-gb has one voice, whatever the variant
_PER_VARIANT = 2


@functools.cache
def talkers_of(split: str, voice: str) -> tuple[tuple[str, int, int], ...]:
    """(variant, rate, pitch) of the men or women of a split: no variant, rate or pitch of one split is in the other."""
    found = []
    for v, variant in enumerate(VARIANTS[split]):
        for k in range(_PER_VARIANT):
            rate = RATES[split][(v + k) % len(RATES[split])]
            clear = [p for p in PITCHES[split] if voice_of(Speaker("", variant, rate, p)) == voice]
            if clear:
                found.append((variant, rate, clear[(v // 2 + k) % len(clear)]))
    return tuple(dict.fromkeys(found))


def speakers_of(split: str, language: str) -> tuple[Speaker, ...]:
    """Men, then women, the same people in every language."""
    people = [*talkers_of(split, "man"), *talkers_of(split, "woman")]
    return tuple(Speaker(ACCENT[language], *person) for person in people)


_BANKS: dict[str, WordBank] = {}


def load_vocabulary(split: str) -> WordBank:
    """Every word by every speaker of a split, synthesised at the first call of a process."""
    if split not in _BANKS:
        words = {language: (*own, *ENROLMENT) for language, own in VOCABULARY.items()}
        _BANKS[split] = build_bank(split, words=words, cast=speakers_of, longest=1.2)
    return _BANKS[split]
