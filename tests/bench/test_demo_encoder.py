"""Two demos side by side, and the table of what they reach."""

from bench.demo_encoder import ARMS, table


def test_a_table_has_means_and_every_seed():
    scores = {ARMS[0]: (0.5, 0.7), ARMS[1]: (0.9, 0.8)}
    rows = [
        {"arm": arm, "seed": seed, "seconds": 60, "scores": {"word": value}, "steps": {}}
        for arm, values in scores.items()
        for seed, value in enumerate(values)
    ]
    lines = table(rows).splitlines()
    assert lines[-2:] == [f"| {ARMS[0]} | 60.0% (50.0%, 70.0%) |", f"| {ARMS[1]} | 85.0% (90.0%, 80.0%) |"]
