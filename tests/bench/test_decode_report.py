"""The tables of docs/audio.md are those of the committed records."""

from bench import decode_report


def test_the_document_has_the_tables_of_the_records():
    records = [decode_report.latest(decode_report.RESULTS / f"{name}.jsonl") for name in ("decode", "fuzz_audio")]
    text = decode_report.DOCUMENT.read_text("utf-8")
    assert decode_report.tables(*records) in text
    assert all(row["av"] == "whole" for row in records[0]["odd"])
    assert (records[1]["files"], records[1]["crashes"], records[1]["hangs"]) == (500, 0, 0)


def test_a_record_becomes_tables(tmp_path, monkeypatch):
    decode = {
        "versions": {"av": "1", "soundfile": "2"},
        "costs": {"av": {"import_ms": 9.5, "installed_mb": 100}},
        "odd": [{"file": "joined", "seconds": 23.0, "av": "whole", "soundfile": "3.00 of 23 s"}],
        "speed": [{"format": "m4a", "kbit_s": 1280, "decode": 2000, "load": 1000}],
        "machine": "x86_64",
        "date": "2026-01-02T03:04:05",
        "load": 0.5,
    }
    fuzz = {"files": 3, "crashes": 0, "hangs": 0, "slowest_s": 0.5, "outcomes": {"mp3": {"read": 1, "refused": 2}}}
    made = decode_report.tables(decode, fuzz | {"machine": "m", "date": "2026-01-02", "load": 0})
    for row in ("| m4a | 1,280 | 2,000 | 1,000 |  |", "| joined | 23 | whole | 3.00 of 23 s |", "| mp3 | 1 | 0 | 2 |"):
        assert row in made
    assert "Odd files, of which 1 of 1 are played whole, and by soundfile 0." in made
