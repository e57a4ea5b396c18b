"""Jinja templates of strangers: no access to Python, and an end, by a budget of operations.

Jinja's sandbox keeps a template from Python's insides, but not from ``{{ 10 ** 10 ** 8 }}``, nested loops or texts that
double. Here every operation whose cost grows with its operands is charged before it runs, every step of a loop and
every call too, and every value has a largest size. What is charged depends on template and conversation alone, so a
template is refused on every machine or on none. Filters and methods are those that chat templates use and whose cost
is known; a template that uses another one is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

MAX_SOURCE = 200_000  # characters of a template; the longest of public models have 20,000
MAX_VALUE = 1 << 24  # characters of a value, every other item counting 8; and of the prompt
MAX_BITS = 1 << 14  # of an integer
ITEM = 8  # characters that an item counts as
# A render's budget, two seconds at worst, in units of about 2 ns; what an operation, a character it goes through, an
# item that is weighed, and a node of the template's syntax tree cost.
UNITS, STEP, CHARACTER, WEIGHED, NODE = 1_000_000_000, 1000, 2, 100, 250
KEY = "the budget"  # no name that a template can write

FILTERS = (
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "first", "float", "format", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "select", "selectattr", "slice", "sort", "string", "sum", "title", "trim",
    "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
# Filters and tests that go through all of a nested value, and those that look at its end or length.
DEEP = {"sort", "unique", "max", "min", "sum", "groupby", "dictsort", "join", "string", "format", "tojson", "eq", "in"}
SHALLOW = {"count", "d", "default", "first", "last", "length"}
METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "casefold", "count", "endswith", "find", "format", "format_map", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
        "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
        "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    )),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(("bit_length",)),
    float: frozenset(("is_integer",)),
    bytes: frozenset(),
}  # fmt: skip
_DATA = tuple(METHODS)
CONTAINERS = (list, tuple, dict, set, type({}.keys()), type({}.items()), type({}.values()))


class TooMuch(Exception):
    """A template goes on for too long, or makes something too large."""


class Budget:
    """What one render has cost so far, and the sizes of what it has made.

    Args:
        characters: of the conversation; longer ones may cost more.
    """

    def __init__(self, characters: int = 0):
        self.left = UNITS + 1000 * characters
        self.largest = MAX_VALUE + 4 * characters
        self.output = 0
        self._sizes: dict[int, tuple[Any, int]] = {}  # by identity; holding the value keeps its identity its own
        self._held = 0

    def charge(self, size: int = 0) -> None:
        """One operation that goes through ``size`` characters or items."""
        self.left -= STEP + CHARACTER * size
        if self.left < 0:
            raise TooMuch("it takes too many steps")

    def fit(self, size: int) -> int:
        """The size, where something of it may be made."""
        if size > self.largest:
            raise TooMuch(f"it makes a value of more than {self.largest} characters")
        return size

    def emit(self, size: int) -> None:
        """Characters that go into the prompt, or into what a macro or a block returns."""
        self.charge(size)
        self.output = self.fit(self.output + size)

    def weigh(self, value: Any) -> int:
        """Characters of a value and 8 for each item, nested ones as often as they appear when written out."""
        if isinstance(value, str):
            return self.fit(len(value) + ITEM)
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise TooMuch(f"it makes a whole number of more than {MAX_BITS} bits")
            return ITEM
        if isinstance(value, range):
            return self.fit(ITEM * len(value))
        if isinstance(value, CONTAINERS):
            return self._weigh_items(value)
        if isinstance(value, Namespace):
            raise TooMuch("it writes out a namespace, or keeps one in a list")
        return ITEM

    def _weigh_items(self, value: Any) -> int:
        if (known := self._sizes.get(id(value))) is not None:
            return known[1]
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        self.left -= WEIGHED * len(parts)
        size = ITEM
        for part in parts:
            size = self.fit(size + self.weigh(part))
        self._held += len(parts)
        if self._held > MAX_VALUE // ITEM:
            self._sizes, self._held = {}, 0
        self._sizes[id(value)] = value, size
        return size


def length(value: Any) -> int:
    """Items or characters of a value, 0 where it has none."""
    return len(value) if hasattr(value, "__len__") and not isinstance(value, Undefined) else 0


def budget_of(context: Context) -> Budget:
    return context.parent[KEY]


def multiplied(budget: Budget, name: str, subject: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Charges what filters and methods make or do that grows with the product of their arguments."""
    given = [*args, *kwargs.values()]
    texts = [value for value in given if isinstance(value, str)]
    number = max((abs(value) for value in given if isinstance(value, int)), default=0)
    if number > {"indent": 1000, "batch": 1000, "slice": 1000, "round": 300}.get(name, number):
        raise TooMuch(f"it gives {name} a number as large as {number:g}")
    if name == "replace" and isinstance(subject, str) and len(texts) > 1:
        found = subject.count(texts[0]) if texts[0] else len(subject) + 1
        budget.charge(budget.fit(len(subject) + found * len(texts[1])))
    elif name in ("strip", "lstrip", "rstrip", "trim") and texts:
        budget.charge(length(subject) * len(texts[0]))
    elif name == "indent" and isinstance(subject, str):
        width = len(texts[0]) if texts else number or 4
        budget.charge(budget.fit(len(subject) + width * (subject.count("\n") + 1)))
    elif name == "tojson" and given:
        breaks = number + sum(map(budget.weigh, given))
        budget.charge(budget.fit(budget.weigh(subject) * (1 + breaks * depth(subject))))
    elif name == "sum" and any(isinstance(value, (list, tuple)) for value in given):
        raise TooMuch("it adds lists with sum")
    elif name in ("format", "format_map") and isinstance(subject, str):
        formatted(budget, subject, given)


def depth(value: Any) -> int:
    """How many containers are in one another."""
    if not isinstance(value, CONTAINERS):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, parts), default=0)


def joined(budget: Budget, separator: str, parts: list) -> None:
    """Charges a join before it is made."""
    budget.charge(budget.fit(sum(map(budget.weigh, parts)) + len(separator) * len(parts)))


def formatted(budget: Budget, pattern: str, values: Any) -> None:
    """Charges ``pattern % values`` or ``pattern.format(*values)`` before it is made."""
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*[:!][^{}]*\{", pattern):
        raise TooMuch("it formats with a width that is computed")
    widths = sum(min(int(digits[:10]), 10**10) for digits in re.findall(r"[0-9]+", pattern))
    places = pattern.count("%") + pattern.count("{")
    budget.charge(budget.fit(len(pattern) + widths + places * budget.weigh(values)))


def guarded(name: str, function: Callable) -> Callable:
    """A filter or a test that is charged for. Taking the context, it is never run while the template is compiled."""
    takes = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def guard(context: Context, value: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        if isinstance(value, Namespace) and name not in ("default", "d", "defined", "undefined"):
            raise TooMuch("it filters a namespace")
        if name == "join":
            value = list(cast(Any, value))
            separator = str(args[0]) if args else str(kwargs.get("d", ""))
            joined(budget, separator, value)
        if name in DEEP:
            budget.charge(budget.weigh(value) + sum(map(budget.weigh, args)))
        else:
            budget.charge(0 if name in SHALLOW else length(value))
        multiplied(budget, name, value, args, kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(*([first[takes]] if takes else []), value, *args, **kwargs)
        if hasattr(result, "__next__"):
            result = list(result)
        budget.weigh(result)
        budget.charge(length(result))
        return result

    return guard


@pass_context
def concat(context: Context, parts: list) -> str:
    """What stands between ``~``, as text."""
    budget = budget_of(context)
    budget.charge(budget.fit(sum(map(budget.weigh, parts))))
    return "".join(map(str, parts))


@pass_context
def made(context: Context, value: Any) -> Any:
    """A value that was just made, where it is not too large."""
    budget = budget_of(context)
    budget.weigh(value)
    budget.charge(length(value))
    return value


@pass_context
def compared(context: Context, value: Any) -> Any:
    """A side of a comparison."""
    budget = budget_of(context)
    if not isinstance(value, Namespace):
        budget.charge(budget.weigh(value))
    return value


@pass_context
def looped(context: Context, value: Any, test: int) -> Any:
    """What a loop goes through, of known length; for each item a test of so many nodes decides whether it counts."""
    if not hasattr(value, "__len__"):
        value = list(value)
    budget_of(context).charge((1 + test * NODE // CHARACTER) * len(value))
    return value


@pass_context
def tick(context: Context, body: tuple[int, int]) -> None:
    """A step of a loop, or a call of a macro, with so many characters of the template and nodes of its tree."""
    characters, size = body
    budget = budget_of(context)
    budget.left -= NODE * size
    budget.emit(characters)


@pass_context
def written(context: Context, value: Any) -> Any:
    """What ``{{ }}`` writes."""
    budget = budget_of(context)
    budget.emit(budget.weigh(value))
    return value


# Their names have a space: a template cannot write them.
OWN = {"the text": concat, "made here": made, "is compared": compared, "is looped": looped, "one step": tick}


class Charged(NodeTransformer):
    """Puts the charges into a template's syntax tree."""

    def own(self, name: str, node: nodes.Node | None, *args: nodes.Node) -> nodes.Filter:
        return nodes.Filter(node, name, list(args), [], None, None, lineno=1 if node is None else node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self.own("the text", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if constant(node) else self.own("made here", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return node if not node.items else self.own("made here", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx != "load" or constant(node) else self.own("made here", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self.own("made here", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        cheap = any(map(constant, sides)) and not any(operand.op in ("in", "notin") for operand in node.ops)
        cheap = cheap or all(map(constant, sides[1:]))
        self.generic_visit(node)
        if not cheap:
            node.expr = self.own("is compared", node.expr)
            for operand in node.ops:
                operand.expr = self.own("is compared", operand.expr)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = self.own("made here", node.filter)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        test = 0 if node.test is None else nodes_of(node.test)
        node = self.stepped(node)
        node.iter = self.own("is looped", node.iter, nodes.Const(test, lineno=node.lineno))
        return node

    def stepped(self, node: Any) -> Any:
        body = sum(len(data.data) for data in node.find_all(nodes.TemplateData)), nodes_of(node)
        self.generic_visit(node)
        step = nodes.ExprStmt(self.own("one step", nodes.Const(body, lineno=node.lineno)), lineno=node.lineno)
        node.body.insert(0, step)
        return node

    visit_Macro = visit_CallBlock = visit_Block = stepped


def nodes_of(tree: nodes.Node) -> int:
    return sum(1 for _ in tree.find_all(nodes.Node))


def constant(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(map(constant, node.items))
    return isinstance(node, nodes.Const)


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with everything charged to the budget that ``render`` gives it."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, to_json: Callable, **names: Any):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=written)
        known = {name: self.filters[name] for name in FILTERS}
        known |= {"tojson": to_json, "safe": str, "e": html, "escape": html}
        self.filters = {name: guarded(name, function) for name, function in known.items()} | OWN
        self.tests = {name: guarded(name, test) for name, test in self.tests.items()}
        self.globals.pop("lipsum")
        self.globals |= names

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(Charged().visit(source), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        if operator == "+":
            budget.charge(budget.fit(length(left) + length(right)))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                budget.charge()
            elif isinstance(left, int) or isinstance(right, int):
                times, value = (left, right) if isinstance(left, int) else (right, left)
                size = length(value) if isinstance(value, (str, bytes)) else budget.weigh(value)
                budget.charge(budget.fit(max(times, 0) * size))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_BITS:
                raise TooMuch(f"it makes a whole number of more than {MAX_BITS} bits")
        elif operator == "%" and isinstance(left, (str, bytes)):
            formatted(budget, str(left), right)
        result = super().call_binop(context, operator, left, right)
        if not isinstance(result, str):
            budget.weigh(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(__context)
        budget.charge(sum(map(length, args)))
        bound = getattr(__obj, "__wrapped__", __obj)
        subject, name = getattr(bound, "__self__", None), getattr(bound, "__name__", "")
        if isinstance(subject, _DATA) and not isinstance(subject, bool):
            kind = next(kind for kind in _DATA if isinstance(subject, kind))
            if name not in METHODS[kind]:
                raise SecurityError(f"the method {name!r} of a {kind.__name__} is not for templates")
            budget.charge(0 if kind is dict else length(subject))
            if name == "join":
                args = (list(args[0]), *args[1:])
                joined(budget, str(subject), args[0])
            else:
                multiplied(budget, name, subject, args, kwargs)
        elif isinstance(subject, type):
            raise SecurityError(f"the method {name!r} of a type is not for templates")
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, Namespace):
            budget.weigh(result)
            budget.charge(0 if isinstance(subject, dict) else length(result))
        return result


def html(value: Any) -> str:
    """With <, >, & and quotes escaped; plain text, where Jinja's has methods of its own."""
    return str(escape(value))


def render(template: Any, variables: Mapping[str, Any], characters: int) -> str:
    """The rendered template.

    Args:
        template: of a ``BudgetedEnvironment``.
        variables: by name.
        characters: of the conversation among them.

    Raises:
        TooMuch: it takes too long or makes something too large; anything else that a template may raise.
    """
    return template.render({**variables, KEY: Budget(characters)})
