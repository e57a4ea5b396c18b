"""The command that measures rates, at a CPU's sizes, and the plan that reads them."""

import json

from afn_model.train.rates import NAMES, read_rates
from bench.calibrate import CPU, Calibration, main


def test_the_command_writes_rates_that_a_plan_reads(tmp_path, capsys):
    file = tmp_path / "rates.json"
    main(["--device", "cpu", "--out", str(file)])
    rates = read_rates(file)
    assert set(rates.measured) == {*NAMES} - {
        "nvlink", "network", "across", "pcie", "message", "sms", "waiting", "answer"
    }  # fmt: skip
    assert json.loads(file.read_text())["device"] == "cpu"
    assert "matmul" in capsys.readouterr().out
    assert all(getattr(rates, name) > 0 for name in rates.measured)


def test_a_rate_is_work_over_the_fastest_round(monkeypatch):
    some = Calibration("cpu", CPU)
    monkeypatch.setattr(some, "seconds", lambda call, rounds=None: 0.5)
    assert some.matmul() == 2 * CPU.rows * CPU.text.width * CPU.text.ffn / 0.5
    assert some.hbm() == 2 * CPU.copied / 0.5
    # 4 FLOPs of a pair, head and dimension, half of the squares; the backward takes 2.5 times as many.
    assert some.attended() == 4 * CPU.text.width * CPU.documents * (CPU.rows / CPU.documents) ** 2 / 2
