"""Tables of pages are those of the sequences, whatever happened in their slots before."""

import random

import torch

from afn_model.infer.page_tables import PageTables
from afn_model.infer.pages import PAGE
from afn_model.infer.sequence import Sequence
from afn_model.infer.tokens import PromptTokens

SLOTS, PAGES = 5, 7


def expected(sequences, lengths):
    width = -(-max(lengths) // PAGE)
    return torch.tensor([(one.pages + [0] * width)[:width] for one in sequences], dtype=torch.int32)


def test_tables_are_those_of_the_sequences():
    rng, tables = random.Random(0), PageTables(SLOTS, PAGES)
    seated = [Sequence(PromptTokens([1]), 9, slot=slot) for slot in range(SLOTS)]
    for _ in range(300):
        slot = rng.randrange(SLOTS)
        match rng.randrange(4):
            case 0:  # another one in its slot
                seated[slot] = Sequence(PromptTokens([1]), 9, slot=slot)
            case 1:  # it has been preempted, and has as many pages as before
                seated[slot].pages = [rng.randrange(1, 90) for _ in seated[slot].pages]
            case _ if len(seated[slot].pages) < PAGES:
                seated[slot].pages.append(rng.randrange(1, 90))
        some = [one for one in rng.choices(seated, k=rng.randrange(1, 8)) if one.pages]
        if some:
            lengths = [rng.randrange(1, PAGE * len(one.pages) + 1) for one in some]
            found = tables.of(some, lengths)
            assert found.dtype == torch.int32
            assert torch.equal(found, expected(some, lengths))


def test_pages_are_read_once(monkeypatch):
    """The next steps add what is new."""
    tables, sequence = PageTables(1, PAGES), Sequence(PromptTokens([1]), 9, slot=0, pages=[3, 4])
    written = []
    write = PageTables._write
    monkeypatch.setattr(PageTables, "_write", lambda *given: (written.append(given[2]), write(*given)))
    for _ in range(3):
        tables.of([sequence], [2 * PAGE])
    sequence.pages.append(6)
    assert tables.of([sequence], [2 * PAGE + 1]).tolist() == [[3, 4, 6]]
    assert written == [0, 2]


def test_a_table_is_a_copy():
    """Rows of a step that is on its way are not those of the next one."""
    tables, sequence = PageTables(1, PAGES), Sequence(PromptTokens([1]), 9, slot=0, pages=[3])
    found = tables.of([sequence], [5])
    sequence.pages = [8]
    tables.of([sequence], [5])
    assert found.tolist() == [[3]]
