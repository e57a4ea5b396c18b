"""Rates: what was assumed, what was measured, and files that are none."""

import json
from dataclasses import fields

import pytest

from afn_model.train.rates import ASSUMED, MEASURED, NAMES, described, read_rates


def test_every_assumption_has_a_source_and_a_doubt_around_its_value():
    for f in fields(ASSUMED):
        if f.name in NAMES:
            ends = ASSUMED.doubts[f.name]
            assert min(ends) < getattr(ASSUMED, f.name) < max(ends)
            assert f.metadata["unit"]
            assert f.metadata["source"]


def test_a_calibration_says_what_was_measured(tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rates": {"matmul": 7e14, "launch": 4e-6}, "device": "cuda"}))
    rates = read_rates(file)
    assert (rates.matmul, rates.launch, rates.hbm) == (7e14, 4e-6, ASSUMED.hbm)
    assert rates.doubts["matmul"] == (7e14 * (1 - MEASURED), 7e14 * (1 + MEASURED))
    assert rates.doubts["hbm"] == ASSUMED.doubts["hbm"]
    measured, assumed = described(rates)
    assert measured == "measured: matmul 7e+14 FLOP/s, launch 4e-06 s"
    assert "matmul" not in assumed
    assert "hbm 2.7e+12 B/s" in assumed
    assert described(ASSUMED)[0].startswith("assumed: matmul")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "bench.calibrate"),
        ("{", "bench.calibrate"),
        ("[]", "is expected"),
        ('{"rates": {}}', "is expected"),
        ('{"rates": {"speed": 1}}', "'speed': 1 is no rate"),
        ('{"rates": {"matmul": 0}}', "is no rate"),
        ('{"rates": {"matmul": NaN}}', "is no rate"),
        ('{"rates": {"node": 8}}', "is no rate"),
    ],
)
def test_other_files(text, message, tmp_path):
    file = tmp_path / "rates.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_rates(file)
    assert "\n" not in str(error.value)
