"""What was found as Markdown: kernels, their main loops, traffic; and what changed since an earlier file."""

from __future__ import annotations

COST = ("instructions", "issue_clk", "tensor_clk", "mufu_clk")


def table(lines: list[dict]) -> str:
    """Kernels first, then a step of each kernel's main loop, then traffic and floors."""
    kernels, floors = ([x for x in lines if ("kernel" in x) == kind] for kind in (True, False))
    out = [
        "| op | workload | kernel | registers | spills | shared KB | threads | blocks/SM | HGMMA | HMMA |",
        "|---" * 10 + "|",
    ]
    for x in kernels:
        out.append(
            f"| {x['op']} | {x['workload']} | `{x['kernel']}` | {x['registers']} | {x['spills']} "
            f"| {x['shared'] / 1024:.0f} | {x['threads']} | {x['blocks']} | {x['hgmma']} | {x['hmma']} |"
        )
    out += ["", *loops(kernels)]
    out += ["", "| op | workload | MB moved | of the least | GFLOP | floor µs H100 | floor µs H200 |", "|---" * 7 + "|"]
    for x in floors:
        moved = f"{x['bytes'] / 1e6:.1f} | {x['traffic']:.2f} x" if x["bytes"] else f"{x['least_bytes'] / 1e6:.1f} | "
        out.append(
            f"| {x['op']} | {x['workload']} | {moved} "
            f"| {x['flops'] / 1e9:.1f} | {x['floor_us_h100']} | {x['floor_us_h200']} |"
        )
    return "\n".join(out) + "\n"


def loops(kernels: list[dict]) -> list[str]:
    """One program's step of its main loop, in clocks of its multiprocessor; programs by what fits 132 of them."""
    out = [
        "| op | workload | kernel | instructions/step | issue clk | tensor clk | MUFU clk | programs | fit at once "
        "| waves | other assemblers |",
        "|---" * 11 + "|",
    ]
    for x in kernels:
        cost = " | ".join(str(x[name]) for name in COST)
        waves = f"{x['programs'] / x['resident']:.2f}" if x["resident"] else ""
        out.append(
            f"| {x['op']} | {x['workload']} | `{x['kernel']}` | {cost} | {x['programs']} | {x['resident']} | {waves} "
            f"| {x.get('assemblers', '')} |"
        )
    return out


CHANGES = ("registers", "spills", "shared", "blocks", *COST, "programs", "resident")


def against(before: list[dict], after: list[dict]) -> str:
    """Kernels whose numbers differ between two files, those that came and those that went."""
    was, now = (_by_kernel(lines) for lines in (before, after))
    out = ["| op | workload | kernel | what changed |", "|---" * 4 + "|"]
    for key in dict.fromkeys([*was, *now]):
        op, workload, kernel, number = key
        name = f"`{kernel}`" + (f" ({number + 1})" if number else "")
        if key not in was or key not in now:
            out.append(f"| {op} | {workload} | {name} | {'gone' if key in was else 'new'} |")
            continue
        old, new = was[key], now[key]
        changed = [f"{x} {old[x]} → {new[x]}" for x in CHANGES if old.get(x) is not None and old[x] != new.get(x)]
        if changed:
            out.append(f"| {op} | {workload} | {name} | {', '.join(changed)} |")
    return "\n".join(out) + "\n"


def _by_kernel(lines: list[dict]) -> dict[tuple[str, str, str, int], dict]:
    """A kernel that a workload launches in several versions is numbered."""
    found: dict[tuple[str, str, str, int], dict] = {}
    for x in lines:
        if "kernel" in x:
            number = 0
            while (x["op"], x["workload"], x["kernel"], number) in found:
                number += 1
            found[x["op"], x["workload"], x["kernel"], number] = x
    return found
