"""What each picture of ``bench.pictures`` shows: functions of pyplot and a file's records, which return a figure."""

from __future__ import annotations

from typing import Any

from afn_model.plot_style import COLOURS, GREY, GRID, INK, LOSES, MARKERS, OURS, RULE
from bench import report

THEIRS = COLOURS[1]


def bars(axes: Any, groups: dict[str, dict[str, float]], colours: dict[str, str], spec: str = ",.1f") -> None:
    """Horizontal bars in groups, each with its value behind it and its name in the legend."""
    at, ticks, longest = 0.0, [], max(max(x.values()) for x in groups.values())
    low = axes.get_xlim()[0] if axes.get_xscale() == "log" else 0
    for named in groups.values():
        start = at
        for name, value in named.items():
            axes.barh(at, value - low, left=low, color=colours[name], height=0.86)
            axes.text(value, at, f" {value:{spec}}", va="center", fontsize=8, color=INK)
            at += 1
        ticks.append((start + at - 1) / 2)
        at += 0.6
    axes.set_yticks(ticks, list(groups))
    axes.set_ylim(at - 1, -0.7)
    axes.set_xlim(low, longest * (1.6 if low else 1.15))
    axes.tick_params(axis="y", length=0)
    used = [name for name in colours if any(name in x for x in groups.values())]
    if len(used) > 1:
        beside(axes, {name: colours[name] for name in used})


def beside(axes: Any, colours: dict[str, str]) -> None:
    """A legend right of the axes."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1))


def stacked(axes: Any, rows: dict[str, dict[str, int]], colours: dict[str, str]) -> None:
    """A bar per row, of parts that are counted."""
    for number, counts in enumerate(rows.values()):
        start = 0
        for name, colour in colours.items():
            if size := counts.get(name, 0):
                axes.barh(number, size, left=start, color=colour, height=0.8)
                start += size
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    beside(axes, {name: colour for name, colour in colours.items() if any(name in x for x in rows.values())})


def where(record: dict) -> str:
    """On what and when it was measured."""
    if record.get("gpu"):
        return f"{record['gpu']}, {record['date'][:10]}"
    return f"CPU, {record['threads']} thread{'s' if record['threads'] > 1 else ''}, {record['date'][:10]}"


def figure_of(plt: Any, count: float, width: float = 8) -> tuple[Any, Any]:
    return plt.subplots(figsize=(width, 1.1 + 0.27 * count))


def grouped(times: dict[str, float]) -> dict[str, dict[str, float]]:
    """ "group, name" to values, as {group: {name: value}}."""
    found: dict[str, dict[str, float]] = {}
    for text, value in times.items():
        group, name = text.rsplit(", ", 1)
        found.setdefault(group, {})[name] = value
    return found


def attention(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, both = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="tight")
    for axes, which in zip(both, ("forward", "forward+backward"), strict=True):
        for impl, colour, marker in (("sdpa", OURS, "o"), ("matmul", THEIRS, "s")):
            points = []
            for name, value in record["milliseconds"].items():
                length, what, by = name.split(" ")
                if (what, by) == (which, impl):
                    points.append((int(length), value))
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=f"impl={impl}")
        axes.set(xscale="log", yscale="log", xlabel="tokens of a sequence", title=which)
        axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend()
    both[0].set_ylabel(f"ms for {record['tokens']:,} tokens, {record['heads']} heads of {record['dim']}")
    figure.suptitle(f"attention by PyTorch's operators · {where(record)}", x=0.01, ha="left")
    return figure


def boundary(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, axes = figure_of(plt, len(record["microseconds"]))
    bars(axes, {name: {"": value} for name, value in record["microseconds"].items()}, {"": OURS}, ".2f")
    axes.set(xlabel="µs per call of an op that does nothing", title=f"What a call costs · {where(record)}")
    return figure


def data(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="tight")
    for row, colour, marker in zip(record["planned"], COLOURS, MARKERS, strict=False):
        used = [100 * (1 - share) for share in row["used_by_chunk"]]
        label = f"context {row['context']:,}"
        first = row["samples"] / (2 ** len(used) - 1)  # each chunk has twice as many as the one before
        sizes = [first * 2**i for i in range(len(used))]
        left.plot(sizes, used, color=colour, marker=marker, label=label)
    left.set(xscale="log", xlabel="samples that are planned at once", ylabel="tokens left empty, %", ylim=(0, None))
    left.set_xticks(sizes, [f"{x:,.0f}" for x in sizes])
    left.minorticks_off()
    left.set_title("Packing")
    left.legend()
    rows = {f"context {row['context']:,}": {"": row["samples_per_s"]} for row in record["planned"]}
    bars(right, rows, {"": OURS}, ",.0f")
    right.set(xlabel="samples planned per second", title=f"Planning {record['entries']:,} records")
    figure.suptitle(f"The loader's plan · {where(record)}", x=0.01, ha="left")
    return figure


def decode(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    colours = {"load_audio": OURS, "FFmpeg's decoder alone": COLOURS[6], "soundfile": THEIRS}
    keys = {"load": "load_audio", "decode": "FFmpeg's decoder alone", "soundfile": "soundfile"}
    rows = {
        x["format"] + ("" if "kbit" in x["format"] else f", {x['kbit_s']} kbit/s"): {
            word: x[key] for key, word in keys.items() if x.get(key)
        }
        for x in record["speed"]
    }
    figure, axes = figure_of(plt, sum(map(len, rows.values())) + 0.6 * len(rows))
    bars(axes, rows, colours, ",.0f")
    axes.set(xlabel="seconds of audio read per second", title=f"Reading audio files · {where(record)}")
    return figure


def demo(plt: Any, runs: list[dict], heldout: list[dict]) -> Any:
    """Every seed is a point: small figures of 400 questions, large ones of 1,000 that no run has seen."""
    kinds = list(runs[0]["results"]["trained"])
    figure, axes = plt.subplots(figsize=(8, 3))
    looks = {"untrained": RULE, "majority answer": GREY, "trained": COLOURS[6]}
    for number, kind in enumerate(kinds):
        for shift, (name, colour) in zip((-0.24, -0.08, 0.08), looks.items(), strict=True):
            scores = [100 * run["results"][name][kind]["score"] for run in runs]
            axes.scatter(scores, [number + shift] * len(scores), color=colour, s=36, label=None if number else name)
        scores = [100 * x["scores"][kind]["score"] for x in heldout]
        label = None if number else "trained, 1,000 new questions"
        axes.scatter(scores, [number + 0.24] * len(scores), color=OURS, marker="D", s=36, label=label)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(ylim=(len(kinds) - 0.5, -0.5), xlim=(-3, 103), xlabel="questions answered rightly, %")
    axes.set_title(f"make demo with {len(runs)} seeds, 400 questions of a kind unless said otherwise")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def encoder(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    rows: dict[str, dict[str, float]] = {}
    for text, value in record["milliseconds"].items():
        name, seconds = text.split(", ")
        rows.setdefault(f"{seconds} of audio", {})[name] = value
    figure, axes = figure_of(plt, 2.6 * len(rows))
    bars(axes, rows, {"ours": OURS, "transformers": THEIRS}, ",.0f")
    axes.set(xlabel="ms", title=f"A small audio encoder · {where(record)}")
    return figure


def features(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    rows = {group: dict(sorted(named.items())) for group, named in grouped(record["milliseconds"]).items()}
    figure, axes = figure_of(plt, 2.6 * len(rows))
    axes.set(xscale="log", xlim=(10, None))
    bars(axes, rows, {"ours": OURS, "transformers": THEIRS}, ",.0f")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=f"ms for {record['minutes']:g} minutes of audio (log scale)")
    axes.set_title(f"FeatureExtractor with {record['simd']} · {where(record)}")
    return figure


def front_ends(plt: Any, records: list[dict]) -> Any:
    """A row per front end, a point per implementation."""
    record = records[-1]
    rows = {name: row["milliseconds"] for name, row in record["front_ends"].items()}
    names = list(dict.fromkeys(who for row in rows.values() for who in row))
    looks = {who: (COLOURS[i], MARKERS[i]) for i, who in enumerate(names)}
    figure, axes = figure_of(plt, len(rows), 9)
    for number, row in enumerate(rows.values()):
        axes.plot([min(row.values()), max(row.values())], [number, number], color=GRID, zorder=1)
        for who, value in row.items():
            axes.scatter(value, number, color=looks[who][0], marker=looks[who][1], s=34, linewidths=0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(ylim=(len(rows) - 0.5, -0.5), xscale="log", xlabel="ms for 5 minutes of audio (log scale)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"Front ends of audio models, {record['simd']} · {record['date'][:10]}, one thread")
    points = [plt.Line2D([], [], marker=m, linestyle="", color=c, label=who) for who, (c, m) in looks.items()]
    axes.legend(handles=points, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def fuzz(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, axes = figure_of(plt, len(record["kinds"]))
    colours = {"accepted": OURS, "refused": RULE, "finding": LOSES}
    stacked(axes, record["kinds"], {"refused, in one line": RULE} | colours)
    found = sum(x.get("finding", 0) for x in record["kinds"].values())
    axes.set(xlabel="mutated inputs", title=f"{record['cases']:,} mutated inputs: {found} findings · {where(record)}")
    return figure


def fuzz_audio(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, axes = figure_of(plt, len(record["outcomes"]))
    stacked(axes, record["outcomes"], {"read": OURS, "warned": COLOURS[3], "refused": RULE})
    bad = f"{record['crashes']} crashes, {record['hangs']} hangs"
    axes.set(xlabel="damaged files", title=f"{record['files']} damaged audio files: {bad} · {where(record)}")
    return figure


def grpo(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2), layout="tight")
    words = {"shared": "prompt computed once", "naive": "with every answer"}
    for axes, key, label in ((left, "seconds", "seconds of a step"), (right, "tokens", "tokens computed")):
        rows = {words[name]: {name: x} for name, x in record[key].items()}
        bars(axes, rows, {"shared": OURS, "naive": THEIRS}, ",.1f" if key == "seconds" else ",d")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        axes.get_legend().remove()
        axes.set(xlabel=label)
    shape = (
        f"{record['answers']} answers of {record['answer_tokens']} tokens to a prompt of {record['prompt_tokens']:,}"
    )
    figure.suptitle(f"GRPO, {shape} · {where(record)}", x=0.01, ha="left")
    return figure


def log_mel(plt: Any, records: list[dict]) -> Any:
    colours = dict(zip(records[-1]["milliseconds"], (THEIRS, OURS, COLOURS[6], COLOURS[7]), strict=False))
    rows = {f"{x['simd']}, {x['date'][:10]}": x["milliseconds"] for x in records}
    figure, axes = figure_of(plt, sum(map(len, rows.values())) + 0.6 * len(rows))
    axes.set(xscale="log", xlim=(10, None))
    bars(axes, rows, colours)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="ms for 30 minutes of audio (log scale)", title="log_mel on CPUs, 2 threads")
    return figure


def packing(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    figure, both = plt.subplots(1, 2, figsize=(10, 3.6), layout="tight")
    contexts = sorted({row["context"] for row in record["rows"]})
    for context, colour, marker in zip(contexts, COLOURS, MARKERS, strict=False):
        rows = [row for row in record["rows"] if row["context"] == context]
        buffers = [row["buffer"] for row in rows]
        for axes, values in zip(
            both, ([100 * (1 - row["used"]) for row in rows], [100 * row["imbalance"] for row in rows]), strict=True
        ):
            axes.plot(buffers, values, color=colour, marker=marker, label=f"context {context:,}")
    for axes, title in zip(both, ("tokens left empty, %", "waiting for the slowest rank, %"), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="clips that are packed at once", title=title)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(buffers, [f"{x:,}" for x in buffers])
        axes.xaxis.minorticks_off()
        axes.legend()
    figure.suptitle(
        f"Packing {record['clips']:,} clips, {record['step']} bins a step · {where(record)}", x=0.01, ha="left"
    )
    return figure


def patch(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    rows = grouped(record["milliseconds"])
    names = [name for name in dict.fromkeys(x for row in rows.values() for x in row) if name != "original"]
    looks = {name: (COLOURS[i % 10], MARKERS[i % 13]) for i, name in enumerate(names)}
    figure, axes = figure_of(plt, 2 * len(rows), 9)
    for number, named in enumerate(rows.values()):
        here = [name for name in names if name in named]
        for place, name in enumerate(here):  # one below the other, for many are nearly as fast
            at, (colour, marker) = number + 0.8 * ((place + 0.5) / len(here) - 0.5), looks[name]
            axes.scatter(named["original"] / named[name], at, color=colour, marker=marker, s=26, linewidths=0)
        if number:
            axes.axhline(number - 0.5, color=GRID, linewidth=1)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(
        ylim=(len(rows) - 0.5, -0.5), xlabel="← slower      time of the original / time when patched      faster →"
    )
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_title(f"ak.patch, all chosen ops and one at a time · {where(record)}")
    points = {name: plt.Line2D([], [], marker=m, linestyle="", color=c, label=name) for name, (c, m) in looks.items()}
    axes.legend(handles=list(points.values()), loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def resample(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    rows = [row for row in record["rows"] if row["rate"] == 48_000]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="tight")
    names = [row["resampler"] for row in rows]
    colours = [OURS if name.startswith("ours") else RULE for name in names]
    for axes, key, spec in ((left, "times_real_time", ",.0f"), (right, "alias_1.05", ".0f")):
        values = [abs(row[key]) for row in rows]
        axes.barh(names, values, color=colours, height=0.8)
        for number, value in enumerate(values):
            axes.text(value, number, f" {value:{spec}}", va="center", fontsize=8, color=INK)
        axes.set_xlim(0, 1.15 * max(values))
        axes.tick_params(axis="y", length=0)
    left.invert_yaxis()
    left.set(xlabel="seconds of audio per second", title="Speed")
    right.set(xlabel="dB below the signal, the worst above 1.05 × 8 kHz", title="Aliases")
    figure.suptitle(f"48 kHz to {record['to'] // 1000} kHz · {where(record)}", x=0.01, ha="left")
    return figure


def sequence_parallel(plt: Any, records: list[dict]) -> Any:
    record = records[-1]
    dtypes = list(dict.fromkeys(x["dtype"] for x in record["errors"]))
    figure, both = plt.subplots(1, len(dtypes), figsize=(10, 4), sharey=True, layout="tight")
    names = list(dict.fromkeys(f"ulysses {x['ulysses']} x ring {x['ring']}" for x in record["errors"]))
    for axes, dtype in zip(both, dtypes, strict=True):
        for x in record["errors"]:
            if x["dtype"] == dtype:
                axes.scatter(
                    x["worst_error"], names.index(f"ulysses {x['ulysses']} x ring {x['ring']}"), color=OURS, s=36
                )
        axes.set(xlim=(0, None), xlabel="worst relative error of outputs and gradients", title=dtype)
        axes.grid(axis="y", linewidth=0.8)
    both[0].set_yticks(range(len(names)), names)
    both[0].invert_yaxis()
    figure.suptitle("Attention over several ranks against one process in float64", x=0.01, ha="left")
    return figure


def train(plt: Any, records: list[dict]) -> Any:
    """Tokens per second of every case, ours and others, at the most layers that fitted."""
    rows: dict[str, dict[str, float]] = {}
    for x in sorted((x for x in records if not x.get("absent")), key=lambda x: x["text_layers"]):
        rows.setdefault(f"{x['case']}, {x['text_layers']} layers", {})[x["variant"]] = x["tokens_per_s"]
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    others = iter((THEIRS, COLOURS[6], COLOURS[2], COLOURS[3]))
    figure, axes = figure_of(plt, sum(map(len, rows.values())) + 0.6 * len(rows))
    bars(axes, rows, {name: OURS if name == "ours" else next(others) for name in names}, ",.0f")
    axes.set(xlabel="tokens per second", title=f"Training steps · {where(records[-1])}")
    return figure


def virtual_ranks(plt: Any, records: list[dict]) -> Any:
    """What splitting a sequence costs: kernels of all ranks in turn on one device, over one undivided call."""
    record = records[-1]
    figure, both = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="tight")
    kinds = list(dict.fromkeys((x["clips"], x["tokens"]) for x in record["rows"]))
    for axes, backward in zip(both, (False, True), strict=True):
        for (clips, tokens), colour, marker in zip(kinds, COLOURS, MARKERS, strict=False):
            rows = [x for x in record["rows"] if (x["clips"], x["tokens"], x["backward"]) == (clips, tokens, backward)]
            label = f"{tokens:,} tokens, {'one clip' if clips == 'one' else 'many clips'}"
            points = sorted((x["ranks"], x["over_plain"]) for x in rows)
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
        axes.set(xlabel="ranks of the ring", title="forward and backward" if backward else "forward")
        axes.set_xticks(sorted({x["ranks"] for x in record["rows"]}))
        axes.axhline(1, color=INK, linewidth=1)
    both[0].set_ylabel("time of all ranks / of one call")
    both[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.suptitle(f"A sequence in parts, on one device · {where(record)}", x=0.01, ha="left")
    return figure


def kernels(plt: Any, records: list[dict]) -> Any:
    """Traffic over the least, and the time below which no kernel can be: of binaries, nothing was timed."""
    rows = [x for x in records if "kernel" not in x]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.6 + 0.19 * len(rows)), sharey=True, layout="tight")
    for number, x in enumerate(rows):
        if x["traffic"]:
            left.plot([1, x["traffic"]], [number, number], color=RULE, linewidth=1)
            left.scatter(x["traffic"], number, color=OURS, s=24, zorder=3)
        label = [None, None] if number else ["H100", "H200"]
        right.scatter(x["floor_us_h100"], number, facecolors="none", edgecolors=THEIRS, s=44, label=label[0])
        right.scatter(x["floor_us_h200"], number, color=COLOURS[2], s=16, label=label[1])
    left.axvline(1, color=INK, linewidth=1)
    left.set_yticks(range(len(rows)), [f"{x['op']} · {x['workload']}" for x in rows])
    left.set(ylim=(len(rows) - 0.5, -0.5), title="Traffic")
    left.set_xlabel("bytes of all launches / least bytes\n(PyTorch's matrix products not counted)")
    left.xaxis.set_major_formatter("{x:g}×")
    right.set(xscale="log", xlabel="µs by the data sheet (log scale)", title="Floor")
    right.xaxis.set_major_formatter("{x:,g}")
    right.legend(loc="lower left")
    for axes in (left, right):
        axes.grid(axis="y", linewidth=0.6)
    figure.suptitle("Compiled for sm_90a: traffic and floors. Nothing was timed.", x=0.01, ha="left")
    return figure


def peers(plt: Any, records: list[dict]) -> Any:
    """As ``python -m bench.report`` draws it."""
    from bench import plots  # which imports matplotlib

    ours = {key: x for key, x in report.groups(records).items() if "ours" in x}
    return plots.peers(ours, plots.colours(ours)) if ours else None
