"""Values from YAML: read without aliases, and each checked for its kind before anything is done with it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

from afn_model.checks import is_number, is_whole

# What the trainer itself keeps in a run folder, and the name by which a stage starts from the base model.
TAKEN = ("base", "curriculum.yaml", "plots", "tensorboard")
HERE = Path(__file__).parent
LONGEST_NAME = 200  # bytes; file systems take 255
Made = TypeVar("Made")

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A value for a message, in time and length that do not grow with the value."""
    try:
        return _short.repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Names and values of a YAML file.

    Raises:
        ValueError: one line with the file: it cannot be read as ``parse_yaml`` reads, or is no mapping.
    """
    try:
        raw = parse_yaml(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected names and values")
    return raw


def parse_yaml(text: str) -> Any:
    """The value of a YAML text in which nothing is read as something else than it seems.

    Aliases (``*name``), by which a few bytes can stand for more than memory holds, are refused, and so are a name that
    is given twice and numbers that YAML 1.1 does not read as decimal ones: 010 (eight) and 1:30 (ninety).

    Raises:
        ValueError: what cannot be read, and where.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                where = f"line {event.start_mark.line + 1}"
                raise ValueError(f"{where}: *{event.anchor:.60}: aliases are not read; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            given = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in given:
                    raise ValueError(f"line {key.start_mark.line + 1}: {shorter(key.value)} is given twice")
                given.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

        def decimal(self, node: Any) -> Any:
            if re.fullmatch(r"[-+]?(0[0-7_]+|[^.]*:.*)", node.value):
                where = f"line {node.start_mark.line + 1}"
                raise ValueError(f"{where}: {shorter(node.value)} is not a decimal number; text needs quotes")
            return getattr(self, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.decimal)
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def to_yaml(value: Any) -> str:
    """YAML that ``read_yaml`` reads back: what occurs twice is written twice."""
    import yaml

    class WithoutAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(value, Dumper=WithoutAliases, sort_keys=False, allow_unicode=True)


def known(given: Iterable[Any], names: Iterable[str], what: str) -> None:
    """ValueError where a key is none of the names."""
    names = list(names)
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{what} has no {', '.join(map(shorter, unknown))}; it takes {', '.join(names)}")


def shorter(key: Any) -> str:
    return key if isinstance(key, str) and len(key) <= 60 and key.isprintable() else shown(key)


def mapping(value: Any, what: str) -> dict[Any, Any]:
    """Names with values; none where there is nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{what}: names and values are expected, not {shown(value)}")
    return value


def name(value: Any, what: str) -> str:
    """A name that can be a folder's: text, one path component, not hidden."""
    if not isinstance(value, str):
        raise ValueError(f"{what} {shown(value)}: a name is text; put it in quotes")
    wrong = not value or value.startswith(".") or value != value.strip() or not value.isprintable()
    if wrong or set(value) & set("/\\"):
        raise ValueError(
            f"{what} {shown(value)}: a name is that of a folder: not empty, without /, not beginning with ."
        )
    if len(value.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise ValueError(f"{what} {shown(value)}: a name has at most {LONGEST_NAME} bytes")
    return value


def number(value: Any, what: str) -> float:
    """A number, YAML 1.1's text for 1e-3 included."""
    try:
        found = float(value) if is_number(value) or isinstance(value, str) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if math.isnan(found):
        raise ValueError(f"{what} is {shown(value)}, not a number")
    return found


def whole(value: Any, what: str) -> int:
    """A whole number."""
    if is_whole(value) and abs(value) < 2**63:
        return int(value)
    found = number(value, what)
    if not (abs(found) < 2**63 and found == int(found)):
        raise ValueError(f"{what} is {shown(value)}, not a whole number")
    return int(found)


def numbers(values: Mapping[str, Any], names: Iterable[str], what: str, kind: Any = number) -> dict[str, Any]:
    """Those of the named fields that are given, as numbers."""
    return {key: kind(values[key], f"{what}: {key}") for key in names if key in values}


def changed_stages(raw: dict[str, Any], changes: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """A curriculum's YAML with some fields of stages changed.

    Args:
        raw: of the file.
        changes: "STAGE.lr", "STAGE.lora.rank" and so on → value; without ``STAGE.`` where there is one stage.
        known: fields of a stage: of a stage that is called lora, "lora.rank" is the field's.

    Raises:
        ValueError: several stages, and a field without its stage; a field of something that has no fields.
    """
    if not changes:
        return raw
    stages = {key: dict(mapping(stage, f"stage {key}")) for key, stage in mapping(raw.get("stages"), "stages").items()}
    for path, value in changes.items():
        first, _, rest = path.partition(".")
        names = rest.split(".")
        if first not in stages or not rest or (first in known and names[0] not in known):
            names = path.split(".")
            if len(stages) != 1:
                raise ValueError(f"--set {path}: which stage? STAGE.{path}, with one of {', '.join(map(str, stages))}")
            (first,) = stages
        place: dict[Any, Any] = stages[first]
        defaults: Any = mapping(raw.get("defaults"), "defaults")
        for name in names[:-1]:
            defaults = defaults.get(name) if isinstance(defaults, dict) else None
            inner = place.get(name, defaults)
            if inner is not None and not isinstance(inner, dict):
                raise ValueError(f"--set {path}: {name} is {shown(inner)}, which has no fields")
            place[name] = dict(inner or {})
            place = place[name]
        place[names[-1]] = value
    return {**raw, "stages": stages}


def made(settings: type[Made], given: Mapping[str, Any], what: str) -> Made:
    """Settings, a dataclass whose fields are numbers, text and the like, from what YAML has for them.

    Raises:
        ValueError: one line: a field that there is not, a value of another kind, or what the settings refuse.
    """
    kinds = {f.name: str(f.type).split(" | ") for f in fields(settings)}  # pyright: ignore[reportArgumentType]
    known(given, kinds, what)
    found = dict(given)
    for key, value in given.items():
        if value is None and "None" in kinds[key]:
            continue
        if kinds[key][0] in ("int", "float"):
            found[key] = (whole if kinds[key][0] == "int" else number)(value, f"{what}: {key}")
        elif kinds[key][0] in ("bool", "str") and type(value).__name__ != kinds[key][0]:
            expected = "true or false" if kinds[key][0] == "bool" else "text"
            raise ValueError(f"{what}: {key} is {shown(value)}; {expected} is expected")
    try:
        return settings(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from None


def find(file: str | Path, folder: str) -> Path:
    """The file, or the one of that name which comes with the package."""
    path = Path(file)
    if path.is_file():
        return path
    own = HERE / folder / f"{file}.yaml"
    if own.is_file():
        return own
    names = ", ".join(sorted(p.stem for p in (HERE / folder).glob("*.yaml")))
    raise ValueError(f"{file}: no such file, and {folder} that come with the package are {names}")
