"""The page pool beside a model of it, with a canary in every page, and pages in memory and files behind it."""

import ast
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from afn_model.infer import pages as module
from afn_model.infer.offload import HostPages
from afn_model.infer.pages import OutOfPages, PagePool, page_key

SIZE = 4  # tokens of a page here
PAGES = 14


def canaries(tokens):
    """What is written for each token: it depends on all tokens before, as keys and values do."""
    values = []
    for token in tokens:
        values.append(hash((values[-1] if values else 0, token)))
    return values


class NoPageLeft(Exception):
    """The pool has refused, as it should."""


class PagedAnswer:
    def __init__(self, tokens):
        self.tokens, self.pages, self.keys = list(tokens), [], []

    def content(self, page):
        return bytes(self.tokens[page * SIZE : (page + 1) * SIZE])

    def key(self, page):
        while len(self.keys) <= page:
            self.keys.append(page_key(self.keys[-1] if self.keys else b"", self.content(len(self.keys))))
        return self.keys[page]


class PagedAnswers:
    """Answers that share pages as the engine's do, and what the pool should know of each page."""

    def __init__(self, folder):
        self.memory = [[None] * SIZE for _ in range(PAGES)]
        self.folder, self.host = folder, None
        self.loaded = Counter()  # where pages were found
        self.serial = 0
        self.log = []
        self.restart()

    def restart(self):
        if self.host is not None:
            self.host.close(keep=len(self.log) % 2 == 0)
        self.host = HostPages(4 * 8 * SIZE, self.folder, 30 * 400)
        self.pool = PagePool(PAGES, self.evicted)
        self.answers = []
        self.published, self.recency = {}, []  # key: (page, content); cached pages, the next to be evicted first

    # -- what the engine does

    def add(self, tokens):
        answer = PagedAnswer(tokens)
        full = len(tokens) // SIZE
        found = []
        for page in range(full):
            there = self.pool.find(answer.key(page), answer.content(page))
            assert there == self.expected(answer, page)
            if there is None:
                break
            found.append(there)
        self.hold(found)
        wanted = -(-len(tokens) // SIZE) - len(found)
        answer.pages = list(found)
        self.answers.append(answer)
        try:
            answer.pages += self.allocate(wanted)
        except NoPageLeft:
            self.end(answer)
            return
        values = canaries(tokens)
        for page in range(len(found), len(answer.pages)):
            rows = values[page * SIZE : (page + 1) * SIZE]
            kept = self.load(answer, page) if page < full else None
            assert kept in (None, rows)
            self.memory[answer.pages[page]][: len(rows)] = rows
            if page < full:
                self.publish(answer, page)

    def extend(self, answer, token):
        place = len(answer.tokens)
        try:
            if place % SIZE == 0:
                answer.pages += self.allocate(1)
            else:
                self.own(answer)
        except NoPageLeft:
            self.end(answer)
            return
        answer.tokens.append(token)
        self.memory[answer.pages[-1]][place % SIZE] = canaries(answer.tokens)[-1]
        if len(answer.tokens) % SIZE == 0:
            self.publish(answer, place // SIZE)

    def own(self, answer):
        old = answer.pages[-1]
        if sum(old in other.pages for other in self.answers) > 1:
            (new,) = self.allocate(1)
            self.memory[new] = list(self.memory[old])
            answer.pages[-1] = new
            self.release([old])

    def fork(self, answer):
        other = PagedAnswer(answer.tokens)
        self.hold(answer.pages)
        other.pages = list(answer.pages)
        self.answers.append(other)

    def end(self, answer):
        self.answers.remove(answer)
        self.release(answer.pages)

    def preempt(self, answer):
        for page in range(len(answer.tokens) // SIZE):
            self.save(answer.key(page), answer.content(page), self.memory[answer.pages[page]])
        self.end(answer)

    def evict(self, count):
        """Others want pages, and write to them."""
        if count > self.pool.room:
            self.refused(count)
        else:
            self.release(self.allocate(count))

    def forget(self, answer):
        if answer.keys:
            self.pool.forget(answer.keys[0])
            self.forgotten(answer.keys[0])

    def clear(self):
        self.pool.clear()
        for key in list(self.published):
            self.forgotten(key)

    # -- what is known of it

    def held(self):
        return Counter(page for answer in self.answers for page in answer.pages)

    def expected(self, answer, page):
        there, content = self.published.get(answer.key(page), (None, b""))
        return there if content == answer.content(page) else None

    def allocate(self, count):
        if count > self.pool.room:
            self.refused(count)
        taken = self.pool.allocate(count)
        assert len(set(taken)) == count
        for page in taken:
            self.serial -= 1
            self.memory[page] = [self.serial] * SIZE
        self.log.append(taken)
        return taken

    def refused(self, count):
        before = self.pool.free, self.pool.cached, self.pool.used
        with pytest.raises(OutOfPages, match=f"{count} pages are wanted and {self.pool.room} of {PAGES}"):
            self.pool.allocate(count)
        assert before == (self.pool.free, self.pool.cached, self.pool.used)
        raise NoPageLeft

    def hold(self, pages):
        self.recency = [page for page in self.recency if page not in pages]
        self.pool.hold(pages)

    def release(self, pages):
        held = self.held()
        found = {page for page, _ in self.published.values()}
        self.recency += [page for page in reversed(pages) if not held[page] and page in found]
        self.pool.release(pages)

    def publish(self, answer, page):
        key, content = answer.key(page), answer.content(page)
        self.pool.publish(answer.pages[page], key, content)
        self.published.setdefault(key, (answer.pages[page], content))

    def evicted(self, page, key, content):
        assert page == self.recency.pop(0)
        assert self.published.pop(key) == (page, content)
        self.save(key, content, self.memory[page])

    def forgotten(self, key):
        page, _ = self.published.pop(key, (None, b""))
        self.recency = [other for other in self.recency if other != page]

    def save(self, key, content, values):
        self.host.save(key, content, torch.tensor(values).view(1, 1, SIZE, 1, 1))
        assert self.host.load(key, content).flatten().tolist() == values

    def load(self, answer, page):
        key = answer.key(page)
        there = "memory" if key in self.host._memory else "folder" if key in self.host else "nowhere"
        payload = self.host.load(key, answer.content(page))
        self.loaded[there] += 1
        assert (payload is None) == (there == "nowhere")
        return None if payload is None else payload.flatten().tolist()

    def check(self):
        self.pool.check(answer.pages for answer in self.answers)
        assert self.pool.free + self.pool.cached + self.pool.used == PAGES
        assert (self.pool.used, self.pool.cached) == (len(self.held()), len(self.recency))
        assert self.host.bytes <= self.host.capacity
        assert self.host.disk.bytes <= self.host.disk.capacity
        for answer in self.answers:
            rows = [value for page in answer.pages for value in self.memory[page]]
            assert rows[: len(answer.tokens)] == canaries(answer.tokens)

    def act(self, action, number, tokens):
        """One operation on the answer of a number, where there are any."""
        answer = self.answers[number % len(self.answers)] if self.answers else None
        try:
            if action in ("extend", "forget", "fork", "end", "preempt") and answer is None:
                action = "add"
            if action == "add":
                self.add(tokens)
            elif action == "extend":
                for token in tokens:
                    if answer in self.answers:
                        self.extend(answer, token)
            elif action == "evict":
                self.evict(number % (PAGES + 2))
            elif action in ("clear", "restart"):
                getattr(self, action)()
            else:
                getattr(self, action)(answer)
        except NoPageLeft:
            pass
        self.check()


ACTIONS = ("add", "extend", "fork", "end", "preempt", "evict", "forget", "clear", "restart")
OFTEN = (30, 40, 10, 15, 5, 10, 1, 0.3, 0.5)


class PageMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.answers = PagedAnswers(Path(self.folder.name))

    def teardown(self):
        self.answers.host.close()
        self.folder.cleanup()

    @rule(
        action=st.sampled_from(["add", "add", "extend", "extend", *ACTIONS]),
        number=st.integers(0, 100),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5 * SIZE),
    )
    def act(self, action, number, tokens):
        self.answers.act(action, number, tokens)


PageMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)
TestPageMachine = PageMachine.TestCase


def operations(count, seed, folder):
    """Random operations on pages; the answers that are left."""
    draw = random.Random(seed)
    answers = PagedAnswers(folder)
    for action in draw.choices(ACTIONS, OFTEN, k=count):
        answers.act(action, draw.randrange(100), draw.choices((0, 1), (1, 5), k=draw.randint(1, 4 * SIZE)))
    answers.host.close()
    return answers


def test_equal_operations_get_equal_pages(tmp_path):
    seed = random.randrange(2**31)
    one, other = (operations(1200, seed, tmp_path / name) for name in "ab")
    assert one.log == other.log
    assert one.loaded["memory"] == other.loaded["memory"]  # what a folder has dropped depends on the clock
    assert min(one.loaded[there] for there in ("memory", "folder", "nowhere"))


def chain(pool, *contents):
    """Pages of one sequence, held and published, with their keys."""
    taken, keys = pool.allocate(len(contents)), []
    for page, content in zip(taken, contents, strict=True):
        keys.append(page_key(keys[-1] if keys else b"", content))
        pool.publish(page, keys[-1], content)
    return taken, keys


def test_the_end_of_the_chain_used_longest_ago_is_evicted_first():
    evicted = []
    pool = PagePool(6, lambda page, key, content: evicted.append(content))
    one, one_keys = chain(pool, b"a", b"b", b"c")
    two, _ = chain(pool, b"d", b"e", b"f")
    pool.release(one)
    pool.release(two)
    pool.hold(one[:2])  # the beginning is used again
    pool.release(one[:2])
    assert pool.find(one_keys[0], b"a") == one[0]
    pool.allocate(6)
    assert evicted == [b"c", b"f", b"e", b"d", b"b", b"a"]
    assert pool.find(one_keys[0], b"a") is None
    assert (pool.free, pool.cached, pool.used, pool.room) == (0, 0, 6, 0)


def test_free_pages_go_before_cached_ones():
    pool = PagePool(3, lambda *_: pytest.fail("a page was evicted"))
    pool.release(chain(pool, b"a")[0])
    pool.allocate(2)
    assert (pool.free, pool.cached, pool.used) == (0, 1, 2)


def test_the_content_is_compared_and_a_key_keeps_its_page():
    pool = PagePool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"key", b"content")
    pool.publish(second, b"key", b"other")
    assert pool.find(b"key", b"content") == first
    assert pool.find(b"key", b"other") is None
    pool.release([first, second])
    assert (pool.free, pool.cached) == (1, 1)


def test_a_key_stands_for_all_pages_before():
    assert page_key(b"", b"a") != page_key(page_key(b"", b"b"), b"a")
    assert len(page_key(b"", b"a")) == 32


def test_what_is_forgotten_is_not_evicted():
    pool = PagePool(3, lambda *_: pytest.fail("a page was evicted"))
    (cached, other), _ = chain(pool, b"a", b"b")
    (used,), keys = chain(pool, b"c")
    pool.release([cached, other])
    pool.forget(b"no such key")
    pool.clear()
    assert (pool.free, pool.cached, pool.used) == (2, 0, 1)
    assert pool.find(keys[0], b"c") is None
    pool.release([used])
    assert pool.free == 3
    pool.check([])


def test_an_error_while_a_page_is_evicted_loses_no_page():
    def full(*_):
        raise MemoryError

    pool = PagePool(2, full)
    pool.release(chain(pool, b"a", b"b")[0])
    with pytest.raises(MemoryError):
        pool.allocate(2)
    pool.check([])
    assert (pool.free, pool.cached) == (1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda pool, page: pool.hold([page]),
        lambda pool, page: pool.release([page]),
        lambda pool, page: pool.publish(page, b"key", b"content"),
    ],
)
def test_a_free_page_is_not_held_released_or_published(call):
    pool = PagePool(2)
    (page,) = pool.allocate(1)
    pool.release([page])
    with pytest.raises(AssertionError, match=f"page {page} "):
        call(pool, page)
    pool.check([])


def name_again(pool, page):
    pool._published[page] = pool._published[0]
    pool._by_key[pool._published[0][0]] = page


TAMPERED = {
    "a page is free twice": lambda pool: pool._free.append(pool._free[0]),
    "a page is lost": lambda pool: pool._free.pop(),
    "a page is in two places": lambda pool: pool._free.append(0),
    "a key leads to another page": lambda pool: pool._by_key.update(key=3),
    "two pages have one key": lambda pool: name_again(pool, 2),
    "a cached page cannot be found": lambda pool: pool.release([2]) or pool._cached.update({pool._free.pop(): None}),
    "a free page can be found": lambda pool: pool._free.append(pool._cached.popitem()[0]),
    "have other references": lambda pool: pool.hold([2]),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_check_notices(what):
    pool = PagePool(5)
    (used, cached), _ = chain(pool, b"a", b"b")
    pool.release([cached])
    (mine,) = pool.allocate(1)
    assert (used, cached, mine) == (0, 1, 2)
    pool.check([[used, mine]])
    TAMPERED[what](pool)
    with pytest.raises(AssertionError, match=what):
        pool.check([[used, mine]])


def test_no_pages():
    with pytest.raises(ValueError, match="0 pages: at least one"):
        PagePool(0)


def test_nothing_but_the_standard_library_is_imported():
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
