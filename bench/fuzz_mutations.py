"""How a file is changed: values of JSON and YAML by nasty ones, and bytes of anything."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

DEEP, BOMB = "@deep@", "@bomb@"  # what JSON's writer cannot write, put in afterwards
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-40, 1e39, 1e308, float("nan"), float("inf"), -float("inf"),
    10**6, 10**9, 10**18, 2**63, -(10**18), 10**400, "", " ", "0", "8", "null", "nan", "1e400", "\ud800", "caf\udce9",
    "a\nb", "a\x00b", "..", ".", "../../outside", "../outside.safetensors", "/etc/passwd", "/", "C:\\x", "~",
    "<sound>", "<sound-1>", "<|im_end|>", "x" * 5000, "{{ 10**10**8 }}", "%s%n", [], {}, [None], [[]], {"a": 1},
    [1, 2, 3], ["a", "b"], {"": None}, DEEP, BOMB,
)  # fmt: skip
_BOMB = (
    "{a: &a [x, x, x, x, x, x, x, x], b: &b [*a, *a, *a, *a, *a, *a, *a, *a], c: &c [*b, *b, *b, *b, *b, *b, *b, *b],"
    " d: &d [*c, *c, *c, *c, *c, *c, *c, *c], e: &e [*d, *d, *d, *d, *d, *d, *d, *d], f: &f [*e, *e, *e, *e, *e, *e],"
    " g: &g [*f, *f, *f, *f, *f, *f, *f, *f], h: &h [*g, *g, *g, *g, *g, *g, *g, *g], i: [*h, *h, *h, *h, *h, *h]}"
)


def mutated(data: bytes, name: str, rng: random.Random) -> bytes:
    """Another content for a file of that name, by its ending."""
    structured = name.endswith((".json", ".jsonl", ".yaml"))
    if structured and rng.random() < 0.8:
        return structure(data, name.endswith(".yaml"), rng)
    if name.endswith(".jinja") and rng.random() < 0.7:
        return template(data.decode(), rng).encode("utf-8", "surrogatepass")
    if name.endswith(".safetensors") and rng.random() < 0.5:
        return header(data, rng)
    return flipped(data, rng)


def structure(data: bytes, yaml: bool, rng: random.Random) -> bytes:
    """A JSON text with one to three values changed; as YAML, which JSON is, aliases may come with it."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = changed(value, rng)
    text = json.dumps(value)
    text = text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)
    return text.replace(f'"{BOMB}"', _BOMB if yaml else "{}").encode()


def changed(value: Any, rng: random.Random) -> Any:
    """The value with one place in it changed; the whole of it in few cases."""
    value = copy.deepcopy(value)
    places = [place for place in paths(value) if place]
    if not places or rng.random() < 0.03:
        return rng.choice(NASTY)
    *way, last = rng.choice(places)
    home = value
    for key in way:
        home = home[key]
    kind = rng.choice(("replace", "replace", "replace", "delete", "double", "rename", "wrap", "text", "move"))
    if kind == "delete":
        del home[last]
    elif kind == "double" and isinstance(home, list):
        home.insert(rng.randrange(len(home) + 1), copy.deepcopy(home[last]))
    elif kind == "rename" and isinstance(home, dict):
        name = rng.choice([key for key in (*home, "a", "..", "", "../outside", "\ud800", 1) if key != last])
        home[name] = home.pop(last)
    elif kind == "wrap":
        home[last] = rng.choice(([home[last]], {"a": home[last]}, [home[last]] * 3))
    elif kind == "text":
        home[last] = str(home[last])
    elif kind == "move":
        other = value
        for key in rng.choice(places):
            other = other[key]
        home[last] = copy.deepcopy(other)
    else:
        home[last] = rng.choice(NASTY)
    return value


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    """The way to every value inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in items for path in paths(part, (*at, key)))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, put in, doubled or cut off, more often near the beginning, where headers are."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(min(len(found), rng.choice((16, 256, 1 << 20))) or 1)
        size = rng.choice((1, 2, 8, 100))
        kind = rng.choice(("bit", "bit", "byte", "cut", "put", "double", "end"))
        if kind == "bit" and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == "byte" and found:
            found[at] = rng.choice((0, 0x7F, 0x80, 0xFF, ord("-"), ord("9"), ord('"'), ord("}")))
        elif kind == "cut":
            del found[at : at + size]
        elif kind == "put":
            found[at:at] = rng.randbytes(size)
        elif kind == "double":
            found[at:at] = found[at : at + size]
        elif kind == "end":
            del found[at:]
    return bytes(found)


def header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header has changed values and again says how long it is."""
    length = struct.unpack("<Q", data[:8])[0]
    text = structure(data[8 : 8 + length], False, rng)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


PIECES = (
    "{{ 10**10**8 }}", "{{ 'a' * 10**9 }}", "{% for i in range(99999) %}", "{% endfor %}", "{% if x %}", "{% endif %}",
    "{{ messages }}", "{{ messages | tojson(indent=4) }}", "{{ 1/0 }}", "{{ x.y.z }}", "{{ ''.__class__ }}", "{{ '",
    "{{ '%9999999d' % 1 }}", "{{ 'a'.ljust(10**9) }}", "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{{ lipsum(10**8) }}", "{% include '../outside' %}", "{{ raise_exception('a\nb') }}", "{% block b %}", "{#",
    "{{ range(10**9) | list }}", "{{ [1] | batch(10**9, 2) | list }}", "\ud800", "<sound>", "{% break %}", "%}", "}}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}", "{% extends 'x' %}",
    "{{ messages[0].content | replace('h', 'h' * 9999) | replace('h', 'h' * 9999) }}", "| length", "[0]", " + ", " ~ ",
)  # fmt: skip


def template(text: str, rng: random.Random) -> str:
    """A template with pieces of others put in, and some of its own left out, doubled or moved."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        kind = rng.choice(("piece", "piece", "piece", "cut", "move"))
        if kind == "piece":
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == "cut":
            text = text[:at] + text[min(other, at + 40) :]
        else:
            text = text[:at] + text[at : at + 80] + text[at:]
    return text
