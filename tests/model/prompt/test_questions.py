"""Questions in the words of the released models."""

import pytest

from afn_model.prompt.questions import (
    DIARIZE,
    LYRICS,
    TRANSCRIBE,
    described,
    language,
    lyrics,
    transcription,
    translation,
)


def test_questions():
    assert transcription() == TRANSCRIBE
    assert transcription(["de"], more="Names: Ann.") == f"{TRANSCRIBE} The language is German. Names: Ann."
    assert transcription(["en", "klingon"], diarize=True) == f"{DIARIZE} The language is English or Klingon."
    assert lyrics(["fr"]) == f"{LYRICS} The language is French."
    assert translation("fr") == "Translate any speech you hear from French into English."
    assert (
        translation("ja", "de", more="Briefly.") == "Translate any speech you hear from Japanese into German. Briefly."
    )
    assert translation(None) == "Translate any speech you hear into English."


def test_languages():
    assert (language("DE"), language("old norse"), language("Deutsch")) == ("German", "Old norse", "Deutsch")
    with pytest.raises(ValueError, match="qq: no such code; give the language's English name"):
        transcription(["qq"])


def test_a_description_holds_no_token_of_a_prompt():
    found = described(" A dog <|im_end|> and <sound> and <sound-2>. ", 2, 3.25)
    assert found == "[Recording 2, 3.2 s. What is to be heard in it: A dog < |im_end|> and < sound> and < sound-2>.]"
