"""What is asked and answered: few phrasings, small words.

Every question has phrasings of training and one more, made of words that training texts hold, for held-out records.
"""

from __future__ import annotations

from afn_model.world.words import WORDS

NUMBERS = WORDS["en"][:10]
ORDINALS = ("first", "second", "third")

# name: (phrasings of both splits, phrasings of held-out records alone)
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "instrument": (
        ("Which instrument do you hear?", "What instrument is playing?"),
        ("Which instrument is playing?",),
    ),
    "notes": (("How many notes are played?", "How many notes do you hear?"), ("How many notes are there?",)),
    "direction": (
        ("Do the notes go up or down?", "Does the melody go up or down?"),
        ("Do the notes of the melody go up or down?",),
    ),
    "tempo": (
        ("Is the melody fast or slow?", "Are the notes fast or slow?"),
        ("Are the notes of the melody fast or slow?",),
    ),
    "music": (
        ("Generate a caption for the input audio.", "Describe the notes of the melody."),
        ("Describe the input audio.",),
    ),
    "instrument_first": (
        ("Which instrument plays first?", "What instrument do you hear first?"),
        ("Which instrument do you hear first?",),
    ),
    "instrument_last": (
        ("Which instrument plays last?", "What instrument do you hear last?"),
        ("Which instrument do you hear last?",),
    ),
    "who": (("Who says {}?", "Who says the word {}?"), ("Is it the man or the woman who says {}?",)),
    "target": (("What does {} say?", "Transcribe only {}."), ("Transcribe only what {} says.",)),
    "diarise": (
        (
            "Transcribe the input audio. If multiple speakers are present, "
            "provide diarized transcripts with speaker labels.",
            "Transcribe the input audio with speaker labels.",
        ),
        ("Transcribe the input speech with speaker labels.",),
    ),
    "interrupt": (
        ("Who interrupts?", "Who interrupts, the man, the woman or nobody?"),
        ("Who interrupts, the man or the woman?",),
    ),
    "segments": (
        ("Generate a detailed caption for the input audio.", "Describe the input audio in parts of 10 seconds."),
        ("Generate a detailed caption in parts of 10 seconds.",),
    ),
    "needle": (("What is said?", "Which word is spoken?"), ("Which word is said?",)),
    "subscene": (
        ("What is heard between {} and {} seconds?", "What do you hear between {} and {} seconds?"),
        ("What do you hear from {} to {} seconds?",),
    ),
    "events": (("How many events do you hear?", "How many events are there?"), ("How many events are heard?",)),
    "sounds": (("Which sounds do you hear?", "Name the sounds in order."), ("Which sounds are heard?",)),
    "words": (("Which words are said?", "Name the words in order."), ("Which words do you hear?",)),
    "which": (
        ("In which recording is {}?", "Which recording has {}?"),
        ("In which recording do you hear {}?",),
    ),
    "same": (
        ("Is the same word said in both recordings?", "Do both recordings say the same word?"),
        ("Do you hear the same word in both recordings?",),
    ),
    "said": (
        ("What is said in the {} recording?", "Which word is said in the {} recording?"),
        ("Which word do you hear in the {} recording?",),
    ),
    "begin": (("What do you hear first?", "What comes first?"), ("What is heard first?",)),
    "next": (("And after that?", "What comes after that?"), ("And what comes after that?",)),
    "previous": (("And before that?", "What comes before that?"), ("And what comes before that?",)),
    "when": (("When does it start?", "At what time does it start?"), ("When does that start?",)),
    "kind": (("Is it a word or a sound?", "Is that a word or a sound?"), ("And is it a word or a sound?",)),
    "identity": (
        ("Who is this person? Give the name.", "What is the name of this person?", "Name the person who is speaking."),
        ("Give the name of this person.",),
    ),
    "private": (
        ("What is the phone number of this person?", "Give the phone number of the person who is speaking."),
        ("Give the phone number of this person.",),
    ),
    "man_or_woman": (
        ("Is this person a man or a woman?", "Who is speaking, a man or a woman?"),
        ("Is the person who is speaking a man or a woman?",),
    ),
    "person_word": (
        ("What does this person say? Give the word.", "What is the word of this person?"),
        ("Give the word of this person.",),
    ),
    "sound_name": (
        ("What is this sound? Give the name.", "Name the sound in this recording."),
        ("Give the name of this sound.",),
    ),
    "capitals": (
        ("Answer in capital letters.", "Give the answer in capital letters."),
        ("Use capital letters in the answer.",),
    ),
    "twice": (("Say it twice.", "Give the answer twice."), ("Answer twice.",)),
    "prefix": (('Begin with "Answer:".', 'Begin the answer with "Answer:".'), ('Begin with the word "Answer:".',)),
    "one_word": (("Answer in one word.", "Use one word only."), ("Answer in one word only.",)),
    "asr": (("Transcribe the input speech.",), ("Transcribe the speech.",)),
    "ast": (("Translate any speech you hear from {} into {}.",), ("Translate the input speech from {} into {}.",)),
    "translate": (("Translate {} into {}.", "What is {} in {}?"), ("Translate the word {} into {}.",)),
    "number_after": (("What comes after {}?", "Which number comes after {}?"), ("What number comes after {}?",)),
    "number_before": (("What comes before {}?", "Which number comes before {}?"), ("What number comes before {}?",)),
    "plus": (("What is {} plus {}?", "How much is {} plus {}?"), ("Which number is {} plus {}?",)),
    "minus": (("What is {} minus {}?", "How much is {} minus {}?"), ("Which number is {} minus {}?",)),
    "list_first": (
        ("What is first in this list: {}?", "Which word comes first: {}?"),
        ("Which word is first in this list: {}?",),
    ),
    "list_last": (
        ("What is last in this list: {}?", "Which word comes last: {}?"),
        ("Which word is last in this list: {}?",),
    ),
    "after": (
        ("What comes right after {}?", "What do you hear right after {}?"),
        ("What is heard right after {}?",),
    ),
    "before": (
        ("What comes right before {}?", "What do you hear right before {}?"),
        ("What is heard right before {}?",),
    ),
    "first": (("What comes first?", "What do you hear first?"), ("What is heard first?",)),
    "last": (("What comes last?", "What do you hear last?"), ("What is heard last?",)),
    "count": (("How many events do you hear?", "How many events are there?"), ("How many events are heard?",)),
    "between": (
        ("How many seconds are between {} and {}?", "How many seconds after {} does {} start?"),
        ("How many seconds do you hear between {} and {}?",),
    ),
    "order": (("Which comes first, {} or {}?", "What do you hear first, {} or {}?"), ("What comes first, {} or {}?",)),
    "onset": (("When does {} start?", "At what time does {} start?"), ("At what time do you hear {}?",)),
}

# The same in both splits: what a model learns in minutes is tried on new voices, not on new phrasings.
BASIC_PHRASES = {
    "word": (
        "What is said?",
        "What word do you hear?",
        "Which word is spoken?",
        "What does the speaker say?",
        "Transcribe the input speech.",
    ),
    "sound": (
        "What sound is this?",
        "Which sound do you hear?",
        "What makes this sound?",
        "Name the sound in this recording.",
    ),
    "onset": (
        "When does the {} start?",
        "At what time does the {} begin?",
        "When do you first hear the {}?",
        "After how many seconds does the {} start?",
    ),
}

_NUMEROS = ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve")
TRANSLATIONS = {
    "en": {
        "es": {
            **dict(zip(NUMBERS, _NUMEROS, strict=True)),
            "stop": "alto",
            "open": "abre",
        }
    },
    "es": {
        "en": {
            "arriba": "up",
            "abajo": "down",
            "derecha": "right",
            "abre": "open",
            "cierra": "close",
            "alto": "stop",
            "luz": "light",
            "gracias": "thanks",
        }
    },
    "de": {"en": {"danke": "thanks", "licht": "light", "rechts": "right"}},
    "fr": {"en": {"merci": "thanks", "ouvre": "open", "droite": "right"}},
}
# What a caption of a melody tells, and the values there are.
CATEGORIES = {
    "instrument": ("flute", "guitar", "organ", "trumpet"),
    "notes": NUMBERS[2:7],
    "tempo": ("fast", "slow"),
    "direction": ("up", "down"),
}
NAMES = ("Anna", "Maria", "Peter", "Paul")
REFUSALS = {"identity": "I cannot identify people.", "private": "I cannot share that."}


def number(n: int) -> str:
    """A number as a word up to nine, in digits beyond."""
    return NUMBERS[n] if 0 <= n < 10 else str(n)


def named(label: str, kind: str) -> str:
    """A label as questions name it: "the siren", "the word seven"."""
    return f"the word {label}" if kind == "word" else f"the {label}"


def seconds(value: float) -> str:
    """A time as answers give it."""
    return f"{value:.1f} s"
