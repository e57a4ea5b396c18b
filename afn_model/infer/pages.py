"""Pages of the key-value cache: who holds them, what is in them, and which may be used again. No torch.

A page is free, used (it has references) or cached: nobody holds it, but its content can be found and held again until
the page is needed. A page is found by the key of a chain, so that equal content counts only behind equal pages, and
its content is compared too. Every operation takes constant time for each page.

The order of a new prompt: ``find`` its pages one after another, ``hold`` those that are there, ``allocate`` the rest
(or ``release`` and wait), and ``publish`` each page once its tokens have been computed.

Source: Kwon et al., 2023, arXiv:2309.06180, for pages with references.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

PAGE = 64  # tokens


class OutOfPages(RuntimeError):
    """More pages are wanted than are free or cached."""


def page_key(parent: bytes, content: bytes) -> bytes:
    """The key of a page: SHA-256 of the key of the page before it (empty for the first) and its own content."""
    return hashlib.sha256(parent + content).digest()


class PagePool:
    """Pages 0 to ``pages`` - 1.

    Args:
        pages: how many there are.
        on_evict: called with page, key and content when a cached page is given up for another use, before anything is
            written to it.
    """

    def __init__(self, pages: int, on_evict: Callable[[int, bytes, bytes], None] | None = None):
        if pages < 1:
            raise ValueError(f"{pages} pages: at least one is expected")
        self.pages, self.on_evict = pages, on_evict
        self._references = [0] * pages
        self._published: list[tuple[bytes, bytes] | None] = [None] * pages  # key and content
        self._by_key: dict[bytes, int] = {}
        self._free = list(range(pages))[::-1]
        self._cached: OrderedDict[int, None] = OrderedDict()  # the next to be evicted first

    @property
    def free(self) -> int:
        """Pages without content."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and that can be found."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages with references."""
        return self.pages - len(self._free) - len(self._cached)

    @property
    def room(self) -> int:
        """Pages that can be allocated."""
        return len(self._free) + len(self._cached)

    def __contains__(self, key: bytes) -> bool:
        """Whether a page can be found by a key; its content is compared when it is."""
        return key in self._by_key

    def allocate(self, count: int) -> list[int]:
        """Pages with one reference each; where too few are free, cached ones are evicted, least recently used first.

        Raises:
            OutOfPages: there are too few; nothing has changed.
        """
        assert count >= 0, count
        if count > self.room:
            raise OutOfPages(f"{count} pages are wanted and {self.room} of {self.pages} can be had: end a sequence")
        while len(self._free) < count:
            self._evict()
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def find(self, key: bytes, content: bytes) -> int | None:
        """The page that was published with this key and content. Until it is held it may be evicted."""
        page = self._by_key.get(key)
        if page is None or self._named(page)[1] != content:
            return None
        return page

    def hold(self, pages: Iterable[int]) -> None:
        """One reference more to each of some pages, which are used or cached."""
        for page in pages:
            if not self._references[page]:
                assert page in self._cached, f"page {page} is free"
                del self._cached[page]
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less to each of some pages, given in the order of a sequence.

        Those that nobody holds any longer are cached where they can be found, the last of them to be evicted first,
        since a page is of use only behind the ones before it.
        """
        for page in reversed(pages):
            assert self._references[page], f"page {page} has no reference"
            self._references[page] -= 1
            if self._references[page]:
                continue
            if self._published[page] is None:
                self._free.append(page)
            else:
                self._cached[page] = None

    def publish(self, page: int, key: bytes, content: bytes) -> None:
        """Lets a page that is held be found. A key that is taken keeps its page."""
        assert self._references[page], f"page {page} has no reference"
        if key in self._by_key:
            return
        assert self._published[page] is None, f"page {page} has another key"
        self._by_key[key], self._published[page] = page, (key, content)

    def forget(self, key: bytes) -> None:
        """A page is no longer found by its key; free where nobody holds it. ``on_evict`` is not called."""
        page = self._by_key.pop(key, None)
        if page is None:
            return
        self._published[page] = None
        if not self._references[page]:
            del self._cached[page]
            self._free.append(page)

    def clear(self) -> None:
        """Forgets all: the weights have changed."""
        for key in list(self._by_key):
            self.forget(key)

    def check(self, tables: Iterable[Iterable[int]] | None = None) -> None:
        """Raises AssertionError unless each page is in one place; references are those of the tables, where given."""
        held = {page for page in range(self.pages) if self._references[page]}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a page is free twice"
        assert free | cached | held == set(range(self.pages)), "a page is lost"
        assert len(free) + len(cached) + len(held) == self.pages, "a page is in two places"
        assert (len(free), len(cached), len(held)) == (self.free, self.cached, self.used), "the numbers are wrong"
        named = {entry[0]: page for page, entry in enumerate(self._published) if entry is not None}
        assert named == self._by_key, "a key leads to another page"
        assert len(named) == sum(entry is not None for entry in self._published), "two pages have one key"
        assert cached <= set(named.values()), "a cached page cannot be found"
        assert not free & set(named.values()), "a free page can be found"
        if tables is not None:
            counts = Counter(page for table in tables for page in table)
            wrong = [page for page in range(self.pages) if counts[page] != self._references[page]]
            assert not wrong, f"pages {wrong[:5]} have other references than are held"

    def _named(self, page: int) -> tuple[bytes, bytes]:
        entry = self._published[page]
        assert entry is not None, f"page {page} has no key"
        return entry

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        key, content = self._named(page)
        del self._by_key[key]
        self._published[page] = None
        self._free.append(page)
        if self.on_evict is not None:
            self.on_evict(page, key, content)
