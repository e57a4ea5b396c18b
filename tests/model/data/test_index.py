"""The corpus index: constant time and memory, and nothing that changed or broke goes unnoticed."""

import json
import os
import random
import subprocess
import sys
import textwrap

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from afn_model.data.index import Corpus, build, folder_of

RECORDS = [
    {"id": "a", "sound": "a.wav", "duration": 1.5, "conversations": [{"from": "human", "value": "<sound>\nÜber?"}]},
    {"id": "b", "conversations": []},
    {"id": "c", "sound": ["a.wav", "b.wav"], "duration": [2, 0.25]},
]
MEASURES = {False: [0.0, 9.0, 0.0], True: [0.5, 9.0, 0.5], "all": [0.5, 0.5, 0.5]}


def write(path, lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def test_records_and_seconds(tmp_path):
    path = write(tmp_path / "c.jsonl", [RECORDS[0], b"\n", RECORDS[1], b"  \n\n", RECORDS[2]])
    seen = []
    facts = build(path, progress=seen.append)
    assert (facts.records, facts.seconds, sum(seen)) == (3, 3.75, path.stat().st_size)
    corpus = Corpus(path, verify=True)
    assert [corpus[i] for i in range(len(corpus))] == RECORDS
    assert [corpus.seconds(i) for i in range(3)] == [1.5, 0.0, 2.25]
    with pytest.raises(IndexError, match="record 3 of 3"):
        corpus[3]
    with pytest.raises(IndexError):
        corpus.seconds(-1)


def test_durations_are_measured_where_records_have_none(tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", [0.1] * 8_000, 16_000)
    talk = {"conversations": [{"from": "human", "value": "<sound>"}, {"from": "gpt", "value": "Hi"}], "sound": "a.wav"}
    path = write(tmp_path / "c.jsonl", [talk, talk | {"duration": 9.0}, talk | {"sound": "b.wav", "duration": None}])
    for measure, seconds in MEASURES.items():
        build(path, measure=measure)
        corpus = Corpus(path)
        assert [corpus.seconds(i) for i in range(len(corpus))] == seconds
    (tmp_path / "b.wav").unlink()
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3: .*b\.wav: no such file"):
        build(path, measure=True)


def test_a_last_line_without_newline(tmp_path):
    path = write(tmp_path / "c.jsonl", [RECORDS[0], json.dumps(RECORDS[2]).encode()])
    build(path)
    assert Corpus(path)[1] == RECORDS[2]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3), min_size=1))
def test_any_records(tmp_path_factory, records):
    records = [{k: v for k, v in record.items() if k != "duration"} for record in records]
    path = write(tmp_path_factory.mktemp("any") / "c.jsonl", records)
    build(path)
    assert [Corpus(path)[i] for i in range(len(records))] == records


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no records"),
        ([b"\n\n"], "no records"),
        ([RECORDS[0], b"{broken\n"], "line 2: not JSON"),
        ([b"\xff\xfe\n"], "line 1: not JSON"),
        ([b"[1]\n"], "line 1: a record is an object, not list"),
        ([{"duration": "long"}], "duration is 'long'"),
        ([{"duration": -1}], "duration is -1"),
        ([b'{"duration": NaN}\n'], "duration is nan"),
    ],
)
def test_bad_corpus(tmp_path, lines, message):
    path = write(tmp_path / "c.jsonl", lines)
    with pytest.raises(ValueError, match=message):
        build(path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"], "nothing is left behind"


def test_a_failed_build_keeps_the_index_that_was_there(tmp_path):
    path = write(tmp_path / "c.jsonl", RECORDS)
    build(path)
    with pytest.raises(ValueError, match="line 1: no sound"):
        build(path, check=lambda record: (_ for _ in ()).throw(ValueError("no sound")))
    assert len(Corpus(path)) == 3


def test_what_changed_is_noticed(tmp_path):
    path = tmp_path / "c.jsonl"
    with pytest.raises(ValueError, match=r"c\.jsonl: no such file"):
        build(path)
    write(path, RECORDS)
    with pytest.raises(ValueError, match="no index; make one"):
        Corpus(path)
    build(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a.wav", b"b.wav"))
    with pytest.raises(ValueError, match=r"fingerprint .* it has changed"):
        Corpus(path)  # which was written after its index
    os.utime(path, (0, 0))
    Corpus(path)
    with pytest.raises(ValueError, match="fingerprint"):
        Corpus(path, verify=True)
    path.write_bytes(content + b"{}\n")
    with pytest.raises(ValueError, match="it has changed"):
        Corpus(path)
    path.write_bytes(content)
    entries = folder_of(path) / "entries"
    entries.write_bytes(entries.read_bytes()[:-1])
    with pytest.raises(ValueError, match="index is damaged"):
        Corpus(path)
    facts = folder_of(path) / "facts.json"
    facts.write_text(facts.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(ValueError, match="version 0"):
        Corpus(path)


def test_a_hundred_million_records(tmp_path):
    """A sparse index of 10⁸ entries, 2,000 of them real: time and memory of a worker that looks them up."""
    path = write(tmp_path / "c.jsonl", [RECORDS[0]])
    build(path)
    folder, length, count = folder_of(path), path.stat().st_size, 10**8
    facts = json.loads((folder / "facts.json").read_text()) | {"records": count}
    (folder / "facts.json").write_text(json.dumps(facts))
    places = random.Random(0).sample(range(0, count - 1, 2), 2000)
    entry = (folder / "entries").read_bytes()
    with (folder / "entries").open("r+b") as file:
        file.truncate(12 * (count + 1))
        for place in places:
            os.pwrite(file.fileno(), entry, 12 * place)
    assert len(entry) == 24
    code = f"""
        import resource, sys, time
        from afn_model.data.index import Corpus
        start = time.perf_counter()
        corpus = Corpus({str(path)!r})
        opened = time.perf_counter() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        for place in {places}:
            assert corpus[place]["id"] == "a"
        each = (time.perf_counter() - start) / {len(places)}
        print(opened, each, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    opened, each, kilobytes = map(float, done.stdout.split())
    print(f"{opened * 1e3:.1f} ms to open, {each * 1e6:.1f} µs a record, {kilobytes} KB; {length} bytes a line")
    assert opened < 2
    assert each < 200e-6, "50 µs on a quiet machine"
    assert kilobytes < 20_000
