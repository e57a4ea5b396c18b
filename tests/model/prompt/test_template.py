"""Chat templates: whatever is wrong with one is a line that says so."""

import pytest

from afn_model.prompt.conversation import Turn
from afn_model.prompt.template import ChatTemplate

TURNS = [Turn("user", ("hello",))]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{{ messages[0].content.nothing() }}", r"^the chat template fails: .*has no attribute 'nothing'"),
        ("{{ messages[0] + 1 }}", r"^the chat template fails: unsupported operand type"),
        ("{{ raise_exception('user first') }}", r"^the chat template fails: user first$"),
        ("{{ 'x' | int('a') // 2 }}", r"^the chat template fails: .*TypeError\)$"),
        ("{{ messages[0].content }}\ud800", r"^the chat template is not Unicode text: .* has half a character, at 25$"),
        ("x" * 200_001, r"^the chat template cannot be read: 200001 characters are more than 200000"),
        ("{% if %}", r"^the chat template cannot be read: "),
    ],
)
def test_what_a_template_raises_is_one_line(source, line):
    with pytest.raises(ValueError, match=line) as error:
        ChatTemplate(source).render(TURNS, True)
    assert "\n" not in str(error.value)


def test_tools_and_documents_are_none_as_in_transformers():
    source = "{% if tools is not none or documents is not none %}[TOOLS]{% endif %}{{ messages[0].content }}"
    assert ChatTemplate(source).render(TURNS, True) == "hello"


def test_its_variables_are_unicode_too():
    with pytest.raises(ValueError, match="the chat template is not Unicode text"):
        ChatTemplate("{{ eos_token }}", {"eos_token": "\udcff"})
