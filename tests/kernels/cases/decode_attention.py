import torch

from tests.kernels.harness import ALL, BF16, DRAWS, HALF, LOW, Case


def inputs(g, capacity, batch=3, new=1, heads=6, kv_heads=2, width=16, page=0, **scales):
    """Lengths from ``new`` to the capacity, both included. What is stale is NaN: it must not spread."""
    q = torch.randn(batch, new, heads, width, generator=g, dtype=torch.float64)
    lengths = torch.randint(new, capacity + 1, (batch,), generator=g)
    lengths[0], lengths[-1] = new, capacity
    cache = torch.randn(2, batch, capacity, kv_heads, width, generator=g, dtype=torch.float64)
    cache = cache.masked_fill((torch.arange(capacity) >= lengths[:, None])[..., None, None], float("nan"))
    made = {"q": q, "k_cache": cache[0], "v_cache": cache[1], "lengths": lengths}
    if page:
        pages = -(-capacity // page)
        order = torch.randperm(batch * pages + 1, generator=g)  # one page is nobody's
        store = torch.full((2, len(order), page, kv_heads, width), float("nan"), dtype=torch.float64)
        padded = torch.nn.functional.pad(cache, (0, 0, 0, 0, 0, pages * page - capacity), value=float("nan"))
        store[:, order[:-1]] = padded.unflatten(2, (pages, page)).flatten(1, 2)
        table = order[:-1].view(batch, pages).to(torch.int32)
        table = table.masked_fill(torch.arange(pages) * page >= lengths[:, None], 0)
        made |= {"k_cache": store[0], "v_cache": store[1], "block_table": table}
    return made


def case(name, size=63, far=(), dtypes=LOW, impls=("triton",), options=None, draws=DRAWS, **shape):
    return Case(
        "decode_attention",
        name,
        lambda g, n: inputs(g, n, **shape),
        options=options or {},
        size=size,
        dtypes=dtypes,
        far=far,
        impls=impls,
        draws=draws,
    )


def cuda(name, heads=14, far=(), **shape):
    """For csrc/cuda: heads of 128, 16-bit."""
    options = {"dtypes": (HALF, BF16), "impls": ("cuda",), "width": 128}
    return case(f"heads of 128, {name}", heads=heads, far=far, **options, **shape)


CPU = ("triton", "cpu")
CASES = [
    case("one token", dtypes=ALL, far=("q", "k_cache", "v_cache")),
    case("4 tokens x 7 heads, odd width", batch=2, new=4, heads=14, width=24, size=300, impls=CPU),
    case("five tokens, pages of 16", new=5, page=16, far=("k_cache", "v_cache"), size=150, impls=CPU),
    case("one sequence of 1000", batch=1, size=1000),
    case("a single key", batch=2, size=1),
    case("more rows than a tile", batch=1, new=8, heads=20, size=200, dtypes=(torch.float32,)),
    case("pages of 5", batch=2, page=5, size=150, dtypes=(torch.float32,)),
    case("window, pages of 16", new=3, page=16, size=150, dtypes=(BF16,), options={"window": (40, 0)}),
    case("window of most of the keys", batch=1, size=1000, dtypes=(torch.float32,), options={"window": (700, -1)}),
    case("softcap", new=2, size=100, dtypes=(HALF, BF16), options={"softcap": 1.5}),
    cuda("one token", far=("q", "k_cache", "v_cache")),
    cuda("4 tokens x 7 heads", new=4, size=150),
    cuda("pages of 16", page=16, size=150, batch=2),
    cuda("one sequence of 1000", size=1000, batch=1, heads=4, kv_heads=1),
]
