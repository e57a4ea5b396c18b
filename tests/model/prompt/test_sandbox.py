"""Templates of strangers end, whatever they ask for, and those of models lose nothing by it."""

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from afn_model.prompt import sandbox
from afn_model.prompt.conversation import Turn
from afn_model.prompt.template import DEFAULT_TEMPLATE, ChatTemplate, _to_json

TURNS = [Turn("user", ("hello",)), Turn("assistant", ("hi",))]
NS = "{% set ns = namespace(x=['a'], t='aa', n=3) %}{% for i in range(60) %}"
END = "{% endfor %}"
LARGE = {
    "a power": "{{ 10 ** (10 ** 8) }}",
    "powers of powers": "{{ 9 ** 99 ** 99 ** 99 }}",
    "squares": f"{NS}{{% set ns.n = ns.n * ns.n %}}{END}",
    "text that doubles": f"{NS}{{% set ns.t = ns.t ~ ns.t %}}{END}",
    "text that is added": f"{NS}{{% set ns.t = ns.t + ns.t %}}{END}",
    "a block that doubles": f"{NS}{{% set b %}}{{{{ ns.t }}}}{{{{ ns.t }}}}{{% endset %}}{{% set ns.t = b %}}{END}",
    "a list that doubles": f"{NS}{{% set ns.x = ns.x + ns.x %}}{END}",
    "a list of itself": f"{NS}{{% set ns.x = [ns.x, ns.x] %}}{END}{{{{ ns.x }}}}",
    "an object of itself": f"{NS}{{% set ns.x = {{'a': ns.x, 'b': ns.x}} %}}{END}{{{{ ns.x | tojson }}}}",
    "a pair of itself": f"{NS}{{% set ns.x = (ns.x, ns.x) %}}{END}{{% set d = {{ns.x: 1}} %}}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "a long list": "{{ [1] * 10 ** 10 }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width of format": "{{ '{:>1000000000}'.format(1) }}",
    "replace": "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}",
    "the filter replace": "{% set a = 'a' * 100000 %}{{ a | replace('a', a) }}",
    "join": "{% set a = 'a' * 100000 %}{{ a.join(a) }}",
    "the filter join": "{% set a = 'a' * 100000 %}{{ a | join(a) }}",
    "JSON's indent": "{{ [[[1]]] | tojson(indent=10 ** 9) }}",
    "output": f"{{% set a = 'a' * 1000000 %}}{{% set b %}}{NS}{{{{ a }}}}{END}{{% endset %}}",
}  # fmt: skip
LONG = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops with a test": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops of a loop": "{% for x in range(9) recursive %}{{ loop(range(9)) if loop.depth < 60 }}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "filters": "{% for a in range(99999) %}{% set x = range(99999) | map('string') | list %}{% endfor %}",
    "methods": "{% set a = 'a' * 9999999 %}{% for b in range(99999) %}{% set x = a.upper() %}{% endfor %}",
    "slices": "{% set a = 'a' * 9999999 %}{% for b in range(99999) %}{% set x = a[1:] %}{% endfor %}",
    "comparisons": "{% set a = 'a' * 9999999 %}{% for b in range(99999) %}{% set x = a ~ 'b' in a %}{% endfor %}",
    "a range": "{% for b in range(99999) %}{% set x = 'a' in range(99999) %}{% endfor %}",
    "strip": "{% set a = 'b' * 9999999 %}{{ a.strip('a' * 9999 ~ 'b') }}",
    "attributes": "{% for a in range(99999) %}" + "{{ a.b }}" * 900 + "{% endfor %}",
    "many lists": "{% for a in range(99999) %}{% set x = [1] * 99999 %}{% endfor %}",
}
REFUSED = {
    "another method": ("{{ 'a'.ljust(9) }}", "the method 'ljust' of a str is not for templates"),
    "a method of a type": ("{{ {}.fromkeys([1]) }}", "the method 'fromkeys' of a type"),
    "another filter": ("{{ 'a' | center(9) }}", "No filter named 'center'"),
    "words": ("{{ lipsum(10 ** 8) }}", "'lipsum' is undefined"),
    "a range": ("{{ range(10 ** 9) }}", "Range too big"),
    "a division": ("{{ 1 / 0 }}", "division by zero"),
    "no end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "itself": ("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "a namespace"),
    "a computed width": ("{{ '%*d' % (9, 1) }}", "a width that is computed"),
    "a computed width of format": ("{{ '{:{}}'.format(1, 9) }}", "a width that is computed"),
    "rounding": ("{{ 5 | round(-10 ** 9) }}", "gives round a number"),
    "batches": ("{{ [1] | batch(10 ** 9, 1) | list }}", "gives batch a number"),
    "Python's insides": ("{{ ''.__class__.__mro__ }}", "__class__"),
    "another file": ("{% include 'a' %}", "no loader"),
    "lines": ("{{ raise_exception('a\n\nb') }}", "the chat template fails: a b"),
    "nothing": ("{{ raise_exception() }}", "the chat template fails: it fails"),
    "parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read: .*recursion"),
}


def refused(source: str) -> str:
    with pytest.raises(ValueError, match=r"^the chat template ") as error:
        ChatTemplate(source).render(TURNS, True)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("case", LARGE)
def test_what_grows_is_refused_before_it_is_made(case):
    assert "it makes a value of more than" in refused(LARGE[case]) or "whole number" in refused(LARGE[case])


@pytest.mark.parametrize("case", LONG)
def test_what_goes_on_is_refused(case, monkeypatch):
    monkeypatch.setattr(sandbox, "UNITS", sandbox.UNITS // 20)
    assert "it takes too many steps" in refused(LONG[case])


@pytest.mark.parametrize("case", REFUSED)
def test_what_else_is_refused(case):
    source, line = REFUSED[case]
    with pytest.raises(ValueError, match=line):
        ChatTemplate(source).render(TURNS, True)
    refused(source)


def test_nothing_runs_while_a_template_is_read():
    for source in ("{{ 'a' * 10 ** 12 }}", "{{ 'a' | indent(10 ** 12) }}", "{{ 10 ** 10 ** 10 is odd }}"):
        ChatTemplate(source)


# In the manner of models that call tools: a loop with neighbours, lists of calls, JSON, text that is put together.
TOOLS = r"""{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n' }}
{%- else %}{{- 'You listen.\n' }}{%- endif %}
{%- set ns = namespace(last=0, text='', seen=[]) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and ns.last == 0 %}{%- set ns.last = messages | length - loop.index %}{%- endif %}
{%- endfor %}
{%- macro turn(role, text) %}{{ '<|im_start|>' ~ role ~ '\n' ~ text | trim ~ '<|im_end|>\n' }}{% endmacro %}
{%- for message in messages %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {{- turn(message.role, message.content.split('</think>')[-1].lstrip('\n')) }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}{{- call.function | tojson }}{%- endfor %}
    {%- else %}{{- turn(message.role, message.content) }}{%- endif %}
    {%- if loop.last or messages[loop.index0 + 1].role != message.role %}{{- '\n' }}{%- endif %}
    {%- set ns.text = ns.text ~ message.content[:3] | upper %}
{%- endfor %}
{{- ns.last }} {{ ns.text | length }} {{ ns.seen | unique | sort | join(',') }} {{ '%.1f%%' % 12.345 }}
{%- for key, value in {'a': 1, 'b': [2, 3]}.items() %}{{- key }}={{ value }}{%- endfor %}
{{- {'a': [1, 'é']} | tojson(indent=2) }}{% if tools %}{{ tools | map(attribute='name') | join(' ') }}{% endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


@pytest.mark.parametrize("source", [TOOLS, DEFAULT_TEMPLATE.read_text("utf-8")], ids=["tools", "default"])
@pytest.mark.parametrize("turns", [1, 1000])
def test_a_models_template_renders_as_in_jinja_and_costs_little(source, turns, monkeypatch):
    texts = [f"<think>{i}</think>\n\n answer {i} " if i % 2 else f"  question {i}, " * 30 for i in range(turns)]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = _to_json
    expected = plain.from_string(source).render(messages=messages, add_generation_prompt=True)
    made: list[sandbox.Budget] = []
    budget = sandbox.Budget
    monkeypatch.setattr(sandbox, "Budget", lambda characters: made.append(budget(characters)) or made[-1])
    template = ChatTemplate(source)
    assert template.render([Turn(m["role"], (m["content"],)) for m in messages], True) == expected
    assert made[-1].left > 0.8 * sandbox.UNITS


def test_long_conversations_may_cost_more():
    turns = [Turn("user", ("x" * 20_000_000,))]
    assert len(ChatTemplate(DEFAULT_TEMPLATE.read_text("utf-8")).render(turns, True)) > 20_000_000
