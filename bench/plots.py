"""The plots of python -m bench.report: ours against every peer, the roofline, and the times of each op."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import LogFormatter

from afn_model.plot_style import COLOURS, GRID, INK, LOSES, MARKERS, OURS, RULE, plotting, pyplot, save
from bench.measure import folder_name
from bench.record import verdict
from bench.sm90 import FLOPS, HBM

plt = pyplot()
KNOWN = {"ours": OURS, "torch": RULE, "torch.compile": COLOURS[2], "liger": COLOURS[3]}
PEERS = (COLOURS[1], *COLOURS[4:], INK)
OTHERS = ("peer", "also")  # roles: others' ops, and one's own beside ours


def draw(grouped: dict, folder: Path) -> list[Path]:
    """Writes every plot that the records allow; returns the files."""
    ours = {key: x for key, x in grouped.items() if "ours" in x}
    if not ours:
        return []
    with plotting():
        palette = colours(ours)
        drawn = {"peers.png": peers(ours, palette), "roofline.png": roofline(ours)}
        for op in dict.fromkeys(key[0] for key in ours):
            drawn[f"bars-{op}.png"] = bars(op, {key[1:]: x for key, x in ours.items() if key[0] == op}, palette)
        for name, figure in drawn.items():
            if figure is not None:
                save(figure, folder / name)
    return [folder / name for name, figure in drawn.items() if figure is not None]


def place(grouped: dict) -> str:
    x = next(iter(next(iter(grouped.values())).values()))
    return x.get("gpu") or f"CPU, {x['threads']} threads (cut shapes; not a GPU figure)"


def colours(grouped: dict) -> dict[str, str]:
    """A colour for every peer and every other implementation of ours, the same in all plots."""
    names = {name for x in grouped.values() for name in x} - set(KNOWN)
    return KNOWN | {name: PEERS[i % len(PEERS)] for i, name in enumerate(sorted(names))}


def short(which: str) -> str:
    return {"forward": "fwd", "forward+backward": "fwd+bwd"}[which]


def peers(grouped: dict, palette: dict[str, str]):
    """A row per workload and pass, a dot per peer: its time over ours. Left of the line ours loses."""
    rows = [(key, x) for key, x in grouped.items() if any(y["role"] in OTHERS for y in x.values())]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.24 * len(rows)))
    axes.set_title(f"Time of each peer over ours · {place(grouped)}")
    labels, worst, loses = [], [], []
    for number, ((op, name, which), by_variant) in enumerate(rows):
        ours = by_variant["ours"]["median_us"]
        ratios = {v: x["median_us"] / ours for v, x in by_variant.items() if x["role"] in OTHERS}
        axes.plot([min(1, *ratios.values()), max(1, *ratios.values())], [number] * 2, color=GRID, zorder=1)
        for variant, ratio in ratios.items():
            axes.scatter(ratio, number, s=34, color=palette[variant], zorder=3, linewidths=0)
        worst.append(min(ratios.values()))
        loses.append(verdict(by_variant["ours"], by_variant.get(by_variant["ours"]["best_peer"])) == "loses")
        labels.append(f"{op} · {name} · {short(which)}")
    low, high = min(0.8, 0.85 * min(worst)), 1.15 * max(axes.get_xlim()[1], 1.5)
    axes.set(xscale="log", xlim=(low, high))
    axes.axvspan(low, 1, color=LOSES, alpha=0.06, linewidth=0)
    axes.axvline(1, color=OURS, linewidth=1.5)
    axes.set_yticks(range(len(rows)), labels)
    for text, lost in zip(axes.get_yticklabels(), loses, strict=True):
        text.set_color(LOSES if lost else "black")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    ticks = [x for x in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= x <= high]
    axes.set_xticks(ticks, [f"{x:g}×" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel("← ours is slower      time of the peer / time of ours      ours is faster →")
    used = [name for name in palette if any(name in x and x[name]["role"] in OTHERS for _, x in rows)]
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=palette[name], label=name) for name in used]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def roofline(grouped: dict):
    """Ours (filled) and the best peer (hollow): matrix ops under the roof, streaming ops against the copy bandwidth."""
    known = {key: x for key, x in grouped.items() if x["ours"]["gb_s"]}
    if not known:
        return None
    matrix = {key: x for key, x in known.items() if x["ours"]["tflops"]}
    stream = {key: x for key, x in known.items() if key not in matrix}
    first = next(iter(known.values()))["ours"]
    sheet = HBM.get(folder_name(first.get("gpu") or ""), None)
    copy, matmul = first["copy_gb_s"], first["matmul_tflops"]
    ops = list(dict.fromkeys(key[0] for key in known))
    look = {op: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, op in enumerate(ops)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    figure.suptitle(f"Against the floor · {place(grouped)}", x=0.06, ha="left", fontweight="bold")

    reach = [1e3 * x["ours"]["tflops"] / x["ours"]["gb_s"] for x in matrix.values()] or [100]
    low, high = min(*reach, 100) / 2, max(*reach, 1000) * 2
    x = [low * (high / low) ** (i / 200) for i in range(201)]
    if sheet:
        left.plot(x, [min(i * sheet / 1e12, FLOPS / 1e12) for i in x], color="black", label="data sheet")
    left.plot(x, [min(i * copy / 1e3, matmul) for i in x], color="black", linestyle="--", label="measured copy, matmul")
    for key, by_variant in matrix.items():
        points(left, look[key[0]], by_variant, lambda r: 1e3 * r["tflops"] / r["gb_s"], lambda r: r["tflops"])
    left.set(xscale="log", yscale="log", title="ops with matrix products", xlabel="FLOP per byte of the least traffic")
    left.set(ylabel="TFLOP/s", xlim=(x[0], x[-1]))
    if sheet:
        right.axhline(sheet / 1e9, color="black")
    right.axhline(copy, color="black", linestyle="--")
    for key, by_variant in stream.items():
        points(right, look[key[0]], by_variant, lambda r: r["gb_s"] * r["median_us"] / 1e3, lambda r: r["gb_s"])
    right.set(
        xscale="log", title="ops that stream", xlabel="least traffic of a call, MB", ylabel="GB/s", ylim=(0, None)
    )
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    left.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    handles = [plt.Line2D([], [], marker=m, linestyle="", color=c, label=op) for op, (c, m) in look.items()]
    handles += [plt.Line2D([], [], marker="o", linestyle="", mfc="none", color="grey", label="best peer (hollow)")]
    handles += [plt.Line2D([], [], color="black", label="data sheet")] if sheet else []
    handles += [plt.Line2D([], [], color="black", linestyle="--", label="measured here")]
    right.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def points(axes, look: tuple[str, str], by_variant: dict, x, y) -> None:
    ours = by_variant["ours"]
    best = by_variant.get(ours["best_peer"])
    colour, marker = look
    axes.scatter(x(ours), y(ours), marker=marker, color=colour, s=46, zorder=3, linewidths=0)
    if best:
        axes.scatter(x(best), y(best), marker=marker, facecolors="none", edgecolors=colour, s=46, zorder=2)
        axes.plot([x(ours), x(best)], [y(ours), y(best)], color=colour, alpha=0.35, linewidth=1, zorder=1)


def bars(op: str, by_call: dict, palette: dict[str, str]):
    """How near every implementation comes to the floor, a group per workload and pass; where no floor is known, to the
    fastest. Numbers are µs; whiskers reach from p20 to p80."""
    floors = all(x["ours"]["floor_us"] for x in by_call.values())
    count = sum(len(x) for x in by_call.values()) + 0.7 * len(by_call)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * count))
    axes.set_title(f"{op} · {place(by_call)}")
    at, ticks, labels = 0.0, [], []
    for (name, which), by_variant in by_call.items():
        best = by_variant["ours"]["floor_us"] if floors else min(x["median_us"] for x in by_variant.values())
        start = at
        for variant in ["ours", *sorted(set(by_variant) - {"ours"}, key=lambda v: by_variant[v]["median_us"])]:
            x = by_variant[variant]
            low, middle, high = (best / x[column] for column in ("p80_us", "median_us", "p20_us"))
            high = max(middle, min(high, 1.12))  # a busy machine's luckiest rounds run out of the plot
            spread = [[middle - low], [high - middle]]
            axes.barh(at, middle, color=palette[variant], height=0.86, xerr=spread, ecolor=INK)
            axes.text(high, at, f"  {x['median_us']:,.1f}", va="center", fontsize=7.5, zorder=5)
            at += 1
        if floors:
            reachable = by_variant["ours"]["of_floor"] / by_variant["ours"]["of_reachable"]
            axes.plot([reachable] * 2, [start - 0.5, at - 0.5], color=INK, linestyle=":", zorder=4)
        ticks.append((start + at - 1) / 2)
        labels.append(f"{name}\n{short(which)}")
        at += 0.7
    axes.set_yticks(ticks, labels)
    axes.set(ylim=(at - 0.9, -0.8), xlim=(0, 1.3))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.axvline(1, color=LOSES, linewidth=1.2)
    axes.set_xlabel(f"{'floor' if floors else 'fastest'} / time; the numbers are µs per call")
    used = [name for name in palette if any(name in x for x in by_call.values())]
    handles = [plt.Rectangle((0, 0), 1, 1, color=palette[name], label=name) for name in used]
    handles.append(plt.Line2D([], [], color=LOSES, label="floor (data sheet)" if floors else "fastest"))
    if floors:
        handles.append(plt.Line2D([], [], color=INK, linestyle=":", label="reachable here"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
