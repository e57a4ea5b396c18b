"""Prompts: data in their places, hashes of what they say, and every one of this package's."""

import pytest

from afn_model.curate.prompt_files import PROMPTS, PromptFile, prompt_file


def test_data_go_in_their_places():
    prompt = PromptFile("p", "Lines:\n$lines\n\nAsk about $what now.")
    assert prompt.fill(lines="$what", what="it") == "Lines:\n$what\n\nAsk about it now."
    assert prompt.instruction == "now."
    assert prompt.hash != PromptFile("p", "Lines:\n$lines\n\nAsk about $what then.").hash
    with pytest.raises(ValueError, match="takes lines, what, got"):
        prompt.fill(lines="x")


def test_each_prompt_ends_with_what_is_asked():
    names = [path.stem for path in sorted(PROMPTS.glob("*.txt"))]
    assert {"caption", "voices", "transcript", "diarise", "seen", "merge", "merge_whole"} <= set(names)
    told = [prompt_file(name).instruction for name in names]
    assert all(told)
    assert len(set(told)) == len(names)
    with pytest.raises(ValueError, match=r"no prompt 'captions': expected a text file, or one of .*caption, "):
        prompt_file("captions")
