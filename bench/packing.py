"""Packing a million clips of 1 s to 30 min on one core: time, room used and balance at 8K, 24K and 128K.

    python -m bench.packing [--out results.jsonl] [--rounds 5]

The lengths are drawn, not taken from a data set: 55 % of clips 1 to 30 s (speech), 25 % 10 s (sounds), 15 % 30 s to
5 min (music, talk), 5 % 5 to 30 min, both log-uniform; 25 tokens a second and log-normal text. Each context gets a
million of those that fit it, so that no clip is cut to exactly the context.
"""

import numpy as np

from afn_model.data.packing import pack
from afn_model.train import typical
from bench.measure import main, milliseconds

CLIPS, STEP, CONTEXTS = 1_000_000, 16, (8_192, 24_576, 131_072)


def mix(clips: int, context: int, seed: int = 0) -> np.ndarray:
    """[clips] int64: tokens of clips that fit the context."""
    return sum(typical.mix(clips, context, seed))


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    rows = []
    for context in CONTEXTS:
        lengths = mix(CLIPS, context)
        for buffer in (8_192, 65_536, CLIPS):
            made = pack(lengths, context, seed=1, step=STEP, buffer=buffer)
            time = milliseconds(
                {"pack": lambda: pack(lengths, context, seed=1, step=STEP, buffer=buffer, impl="cpu")},  # noqa: B023
                rounds,
            )["pack"]
            row = {
                "context": context,
                "buffer": buffer,
                "mean_length": round(float(lengths.mean()), 1),
                "longest": int(lengths.max()),
                "bins": len(made),
                "milliseconds": time,
                "used": round(made.used, 6),
                "imbalance": round(made.imbalance, 6),
                "spread_median": round(float(np.median(made.spread)), 6),
                "spread_p99": round(float(np.quantile(made.spread, 0.99)), 6),
                "spread_worst": round(float(made.spread.max()), 6),
                "steps_above_3_percent": round(float((made.spread > 0.03).mean()), 6),
                "bin_cost_max_over_mean": round(float(made.costs.max() / made.costs.mean()), 3),
            }
            print(f"context {context}, buffer {buffer}: {time:.0f} ms, used {made.used:.3%}")
            print(f"  waiting for the slowest {made.imbalance:.3%}, steps above 3 % {(made.spread > 0.03).mean():.2%}")
            rows.append(row)
    return {"benchmark": "packing", "clips": CLIPS, "step": STEP, "rows": rows}


if __name__ == "__main__":
    main(__doc__, measure, rounds=5)
