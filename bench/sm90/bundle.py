"""The functions of many cubins as one: a disassembler takes longer to start than to read a kernel.

A cubin is an ELF file whose sections .text.<name> are functions; addresses in a listing count from a function's start.
The bundle has these sections alone, under names that begin with the cubin's number, and the first cubin's header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER, SECTION, SYMBOL = "<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ"
CODE, SYMBOLS, STRINGS = 1, 2, 3  # kinds of sections
FUNCTION, ENTRY = 0x12, 0x10  # a global function, which is a kernel


def architecture(cubin: bytes) -> tuple:
    """What cubins of one bundle have in common: kind of file, machine, version and flags."""
    kind = struct.unpack_from(HEADER, cubin)
    return kind[0], kind[2], kind[3], kind[7]


def functions(cubin: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, flags and machine code of each."""
    head = struct.unpack_from(HEADER, cubin)
    sections = [struct.unpack_from(SECTION, cubin, head[6] + i * head[11]) for i in range(head[12])]
    names = sections[head[13]][4]
    for name, kind, flags, _, start, size, *_ in sections:
        title = cubin[names + name : cubin.index(b"\0", names + name)].decode()
        if kind == CODE and title.startswith(".text."):
            yield title.removeprefix(".text."), flags, cubin[start : start + size]


def bundled(cubins: list[bytes]) -> bytes:
    """A cubin with the functions of all of them; that called ``f`` in the third is ``2.f``."""
    assert len({architecture(one) for one in cubins}) == 1
    parts = [(f"{i}.{name}", flags, code) for i, one in enumerate(cubins) for name, flags, code in functions(one)]
    names, places = bytearray(b"\0"), {}
    for title in (".names", ".symbols", *(f".text.{name}" for name, _, _ in parts)):
        places[title] = len(names)
        names += title.encode() + b"\0"
    symbols = bytearray(struct.calcsize(SYMBOL))
    for i, (name, _, code) in enumerate(parts):  # 6: behind ".text."
        symbols += struct.pack(SYMBOL, places[f".text.{name}"] + 6, FUNCTION, ENTRY, 3 + i, 0, len(code))
    file, table = bytearray(struct.calcsize(HEADER)), bytearray(struct.calcsize(SECTION))

    def add(title: str, kind: int, flags: int, data: bytes, link: int, info: int, size: int = 0) -> None:
        file.extend(bytes(-len(file) % 128))
        table.extend(struct.pack(SECTION, places[title], kind, flags, 0, len(file), len(data), link, info, 128, size))
        file.extend(data)

    add(".names", STRINGS, 0, names, 0, 0)
    add(".symbols", SYMBOLS, 0, symbols, 1, 1, struct.calcsize(SYMBOL))
    for i, (name, flags, code) in enumerate(parts):
        add(f".text.{name}", CODE, flags, code, 2, 1 + i)  # info: its symbol
    head = list(struct.unpack_from(HEADER, cubins[0]))
    head[5], head[6], head[10] = 0, len(file), 0  # no segments; sections last
    head[12], head[13] = 3 + len(parts), 1
    file[: struct.calcsize(HEADER)] = struct.pack(HEADER, *head)
    return bytes(file + table)


def apart(listing: str) -> dict[int, str]:
    """A bundle's listing as those of its cubins, by number."""
    found: dict[int, str] = {}
    for part in listing.split("\t\tFunction : ")[1:]:
        number, _, rest = part.partition(".")
        found[int(number)] = found.get(int(number), "") + f"\t\tFunction : {rest}"
    return found
