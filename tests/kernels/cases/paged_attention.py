import torch

from tests.kernels.cases.attention import cu
from tests.kernels.harness import BF16, HALF, Case


def inputs(g, new, cached, heads=(4, 2), width=16, page=16):
    """``new`` tokens of each sequence behind ``cached`` ones. What is stale is NaN: it must not spread."""
    lengths = [n + m for n, m in zip(new, cached, strict=True)]
    pages = max([1, *(-(-n // page) for n in lengths)])
    order = torch.randperm(len(new) * pages + 1, generator=g)  # one page is nobody's
    store = torch.full((2, len(order), page, heads[1], width), float("nan"), dtype=torch.float64)
    table = order[:-1].view(len(new), pages).to(torch.int32)
    for row, length in zip(table, lengths, strict=True):
        for i in range(-(-length // page)):
            used = min(page, length - i * page)
            store[:, row[i], :used] = torch.randn(2, used, heads[1], width, generator=g, dtype=torch.float64)
        row[-(-length // page) :] = 0
    q = torch.randn(sum(new), heads[0], width, generator=g, dtype=torch.float64)
    made = {"q": q, "k_cache": store[0], "v_cache": store[1], "block_table": table}
    return made | {"cu_seqlens_q": cu(new), "lengths": torch.tensor(lengths, dtype=torch.int32)}


def case(name, new, cached, size=35, far=(), dtypes=(torch.float32, BF16), options=None, impls=("triton",), **shape):
    """Sequences of ``new`` tokens behind ``cached`` ones; a last one has ``size`` new tokens behind 9."""
    return Case(
        "paged_attention",
        name,
        lambda g, n: inputs(g, [*new, n], [*cached, 9], **shape),
        options=options or {},
        size=size,
        dtypes=dtypes,
        far=far,
        impls=impls,
    )


def cuda(name, new, cached, size=35, **rest):
    """For csrc/cuda/paged_attention.cu, whose blocks have 128 keys."""
    return case(f"cuda, {name}", new, cached, size, impls=("cuda",), dtypes=(HALF, BF16), **{"width": 128} | rest)


CPU = ("triton", "cpu")
CASES = [
    case("pages of 16", [3, 40, 1], [60, 0, 33], far=("q", "k_cache", "v_cache"), impls=CPU),
    case("pages of 64, 7:1 heads", [66], [5], 12, heads=(7, 1), width=32, page=64),
    case("pages of 5, odd width", [33, 0, 7], [20, 11, 40], 20, width=48, page=5, dtypes=(torch.float32,)),
    case("every entry is seen", [9], [70], 33, options={"causal": False}, dtypes=(torch.float32,)),
    case("window", [40, 5], [60, 90], 33, options={"window": (20, 0)}, dtypes=(BF16,)),
    case("softcap", [9], [30], 20, options={"softcap": 1.5}, dtypes=(HALF,)),
    cuda("pages of 16", [3, 1], [60, 133], 20, heads=(2, 1), width=64, far=("q", "k_cache", "v_cache")),
    cuda("pages of 64, 7:1 heads", [6], [75], 12, heads=(7, 1), page=64),
    cuda(
        "pages of 256, every entry is seen",
        [9, 0, 140],
        [270, 30, 0],
        33,
        heads=(2, 1),
        page=256,
        options={"causal": False},
    ),
]
