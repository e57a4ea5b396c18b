"""One schedule for the attention of every layer: the same bits as without it, one graph, errors for another batch's."""

import itertools

import pytest
import torch
import torch._dynamo.testing

import afn_kernels as ak
from afn_kernels import _check
from afn_kernels.attention import schedule as module
from afn_kernels.patch.packed_batch import PackedBatch
from tests.kernels.test_attention import cu, make, needs_triton

QUERIES, KEYS = [40, 0, 1, 65], [70, 9, 0, 65]


@pytest.fixture
def made(monkeypatch):
    """Block and kind of every table that is made."""
    found, tile_table = [], module.tile_table

    def counted(*args):
        found.append((args[4], args[6]))
        return tile_table(*args)

    monkeypatch.setattr(module, "tile_table", counted)
    return found


def schedule_of(lengths_q, lengths_k, device, dtype=torch.float32, **options):
    boundaries = cu(lengths_q).to(device), cu(lengths_k).to(device)
    sizes = {"total_q": sum(lengths_q), "total_k": sum(lengths_k), "head_dim": 16, "dtype": dtype}
    return ak.attention_schedule(*boundaries, **sizes, impl="triton", **options)


def layers(q, k, v, count, impl="triton", **options):
    """The output of ``count`` calls, each with the queries that the one before made, and the gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = leaves[0]
    for _ in range(count):
        out = ak.attention(out, *leaves[1:], impl=impl, **options)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_bits_and_fewer_tables(causal, made, device):
    needs_triton()
    tensors = [x.to(device) for x in make(QUERIES, KEYS, 2, 1, 16, torch.float32)]
    boundaries = {"cu_seqlens_q": cu(QUERIES).to(device), "cu_seqlens_k": cu(KEYS).to(device)}
    alone = layers(*tensors, 2, causal=causal, **boundaries)
    made.clear()
    schedule = schedule_of(QUERIES, KEYS, device, causal=causal)
    shared = layers(*tensors, 2, causal=causal, schedule=schedule)
    assert len(made) == len(set(made)), made
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a, b)


def test_what_a_collective_writes_is_seen(device):
    """It writes, as ``.data`` does, without that PyTorch counts it."""
    needs_triton()
    q, k, v = (x.to(device) for x in make([8], [8], 1, 1, 16, torch.float32))
    boundaries = cu([3, 5]).to(device)
    schedule = ak.attention_schedule(boundaries, total_q=8, head_dim=16, dtype=q.dtype, impl="triton")
    first = ak.attention(q, k, v, cu_seqlens_q=boundaries, impl="triton")
    version = boundaries._version
    boundaries.data[1] = 6
    assert boundaries._version == version
    for impl in ("triton", "auto"):
        found = ak.attention(q, k, v, cu_seqlens_q=boundaries, impl=impl)
        assert torch.equal(found, ak.attention(q, k, v, cu_seqlens_q=cu([6, 2]).to(device), impl=impl))
    assert not torch.equal(first, found)
    if device == "cpu":
        with pytest.raises(ValueError, match="changed in place after it was made"):
            ak.attention(q, k, v, schedule=schedule, impl="triton")


def test_calls_on_our_own_boundaries_share_tables_until_these_change(made, device):
    needs_triton()
    q, k, v = (x.to(device) for x in make([8], [8], 1, 1, 16, torch.float32))
    boundaries, twin = cu([3, 5]).to(device), cu([3, 5]).to(device)
    module.declare(boundaries)
    module.declare(twin)

    def tables(count, cu_seqlens_q=boundaries, cu_seqlens_k=boundaries, causal=False, rows=8):
        """The output, for which that many tables were made; the same as without any kept."""
        made.clear()
        options = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "causal": causal, "impl": "triton"}
        found = ak.attention(q[:rows], k[:rows], v[:rows], **options)
        assert len(made) == count
        anew = options | {"cu_seqlens_q": cu_seqlens_q.clone(), "cu_seqlens_k": cu_seqlens_k.clone()}
        assert torch.equal(found, ak.attention(q[:rows], k[:rows], v[:rows], **anew))
        return found

    first = tables(1)
    with torch.inference_mode():
        tables(0)
    tables(1, causal=True)
    tables(1, cu_seqlens_k=twin)
    tables(0, cu_seqlens_k=twin)
    boundaries[1] = 4
    assert not torch.equal(tables(1), first)
    twin[1] = 2
    tables(1, cu_seqlens_k=twin)
    tables(0)
    boundaries[1:] = boundaries.new_tensor([1, 6])
    tables(1, rows=6)
    lse = q.new_zeros(8, 1)
    made.clear()
    for _ in range(2):
        ak.attention_backward(q, q, k, v, q, lse, cu_seqlens_q=twin, impl="triton")
    assert len(made) == 2


def test_layers_of_a_patched_model_share_tables(made):
    """Their boundaries are made of a mask, and nobody else has them."""
    needs_triton()
    batch = PackedBatch(True, cu_q=cu([3, 5]), cu_k=cu([3, 5]))
    q = torch.randn(1, 1, 8, 16)
    for _ in range(2):
        batch.run(q, q, q, 1.0, "triton")
    assert len(made) == 1


def test_tables_are_kept_no_longer_than_their_boundaries(made, device, monkeypatch):
    needs_triton()
    q, k, v = (x.to(device) for x in make([8], [8], 1, 1, 16, torch.float32))
    count, boundaries = len(module._kept), cu([3, 5]).to(device)
    module.declare(boundaries)
    ak.attention(q, k, v, cu_seqlens_q=boundaries, impl="triton")
    assert len(module._kept) == count + 1
    del boundaries
    assert len(module._kept) == count
    with torch.inference_mode():
        uncounted = cu([3, 5]).to(device)

    def made_by_two_calls(cu_seqlens):
        made.clear()
        module.declare(cu_seqlens)
        for _ in range(2):
            ak.attention(q, k, v, cu_seqlens_q=cu_seqlens, impl="triton")
        return len(made)

    boundaries = cu([3, 5]).to(device)
    with monkeypatch.context() as patch:
        patch.setattr(module, "keeps", lambda *boundaries: False)  # as in a graph that is being captured
        assert made_by_two_calls(boundaries) == 2
    with torch.inference_mode():
        uncounted = boundaries.clone()
    assert made_by_two_calls(uncounted) == 2
    assert len(module._kept) == count
    assert made_by_two_calls(boundaries) == 1


def test_without_gradients_only_the_forward_has_a_table(made, device):
    needs_triton()
    tensors = [x.to(device) for x in make(QUERIES, KEYS, 2, 1, 16, torch.float32)]
    with torch.no_grad():
        schedule = schedule_of(QUERIES, KEYS, device)
        assert len(made) == 1
        ak.attention(*tensors, schedule=schedule, impl="triton")
    assert len(made) == 1
    layers(*tensors, 1, schedule=schedule)  # makes what is missing, for this call
    assert len(made) == 2
    assert len(schedule.tables) == 1


def test_continuing_and_parts_of_the_keys_take_a_schedule(made, device):
    needs_triton()
    q, k, v = (x.to(device) for x in make(QUERIES, KEYS, 2, 1, 16, torch.float32))
    boundaries = {"cu_seqlens_q": cu(QUERIES).to(device), "cu_seqlens_k": cu(KEYS).to(device)}
    carry = torch.randn_like(q), torch.randn(q.shape[:2], device=device)
    schedule = schedule_of(QUERIES, KEYS, device, return_lse=True)
    count = len(made)
    found = ak.attention(q, k, v, carry=carry, schedule=schedule, impl="triton")
    found += ak.attention_backward(q, q, k, v, *found, schedule=schedule, impl="triton")
    assert len(made) == count
    expected = ak.attention(q, k, v, carry=carry, **boundaries, impl="triton")
    expected += ak.attention_backward(q, q, k, v, *expected, **boundaries, impl="triton")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inside", [False, True], ids=["schedule from outside", "schedule made in the graph"])
def test_torch_compile_sees_one_graph_for_every_batch(inside, device):
    """As a block of a model is compiled: the schedule comes in from outside, or is made in the same graph."""
    needs_triton()
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def block(q, k, v, cu_seqlens, schedule):
        if schedule is None:
            sizes = {"total_q": len(q), "head_dim": 16, "dtype": q.dtype}
            schedule = ak.attention_schedule(cu_seqlens, **sizes, causal=True, impl="triton")
        q = ak.attention(q, k, v, causal=True, schedule=schedule, impl="triton")
        return ak.attention(q, k, v, causal=True, schedule=schedule, impl="triton")

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=graphs)
    for lengths in ([50, 23], [1, 67, 1, 2]):  # no two sizes alike at first
        q, k, v = (x.to(device).requires_grad_() for x in make(lengths, lengths, 1, 1, 16, torch.float32))
        cu_seqlens = cu(lengths).to(device)
        sizes = {"total_q": len(q), "head_dim": 16, "dtype": q.dtype}
        schedule = None if inside else ak.attention_schedule(cu_seqlens, **sizes, causal=True, impl="triton")
        found, expected = (f(q, k, v, cu_seqlens, schedule) for f in (compiled, block))
        assert torch.equal(found, expected)
        grads = (torch.autograd.grad(out.sum(), (q, k, v)) for out in (found, expected))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert graphs.frame_count == 1


def test_other_implementations_take_its_boundaries(made):
    q, k, v = make(QUERIES, KEYS, 2, 1, 16, torch.float32)
    boundaries = {"cu_seqlens_q": cu(QUERIES), "cu_seqlens_k": cu(KEYS)}
    sizes = {"total_q": len(q), "total_k": len(k), "head_dim": 16, "dtype": q.dtype}
    for impl, causal in itertools.product(("auto", "matmul", "sdpa", "reference"), (False, True)):
        schedule = ak.attention_schedule(*boundaries.values(), **sizes, causal=causal, impl=impl)
        options = {"causal": causal, "impl": impl}
        found = ak.attention(q, k, v, schedule=schedule, **options)
        assert torch.equal(found, ak.attention(q, k, v, **boundaries, **options))
    assert not made, "no table where no kernel reads one"


def test_a_schedule_of_another_batch_is_refused(device):
    needs_triton()
    q, k, v = (x.to(device) for x in make(QUERIES, KEYS, 2, 1, 16, torch.float32))
    schedule = schedule_of(QUERIES, KEYS, device, causal=True)
    with pytest.raises(ValueError, match="other boundaries than the call's"):
        ak.attention(q, k, v, causal=True, cu_seqlens_q=cu([106]).to(device), schedule=schedule)
    with pytest.raises(ValueError, match="causal=False, the schedule was made for causal=True"):
        ak.attention(q, k, v, schedule=schedule)
    with pytest.raises(ValueError, match="cu_seqlens_q runs from 0 to 106, expected 0 to 66"):
        ak.attention_schedule(cu(QUERIES), total_q=66, head_dim=16, dtype=torch.float32)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(("rows", "scheduled"), [(11, 12), (12, 11), (99, 100)])  # of as many tiles
def test_a_schedule_of_another_length_is_refused(rows, scheduled, impl, device, monkeypatch):
    needs_triton()
    monkeypatch.setattr(_check, "readable", lambda x: False)
    lengths = [5, scheduled - 5]
    other, q = (torch.zeros(n, 1, 16, device=device) for n in (scheduled, rows))
    sizes = {"total_q": scheduled, "head_dim": 16, "dtype": q.dtype}
    schedule = ak.attention_schedule(cu(lengths).to(device), **sizes, impl=impl)
    for mine, keys in ((q, other), (other, q)):
        message = f"the schedule was not made for {len(mine)} queries and {len(keys)} keys"
        with pytest.raises(ValueError, match=message):
            ak.attention(mine, keys, keys, schedule=schedule, impl=impl)
        lse = mine.new_zeros(len(mine), 1)
        with pytest.raises(ValueError, match=message):
            ak.attention_backward(mine, mine, keys, keys, mine, lse, schedule=schedule, impl=impl)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_schedule_whose_boundaries_changed_is_refused(which, impl, device):
    needs_triton()
    boundaries = [cu([3, 5]).to(device), cu([3, 5]).to(device)]
    q, k, v = (x.to(device) for x in make([8], [8], 1, 1, 16, torch.float32))
    sizes = {"total_q": 8, "total_k": 8, "head_dim": 16, "dtype": q.dtype}
    schedule = ak.attention_schedule(*boundaries, **sizes, impl=impl)
    ak.attention(q, k, v, schedule=schedule, impl=impl)
    boundaries[which][1] = 4
    with pytest.raises(ValueError, match="cu_seqlens of the schedule were changed in place after it was made"):
        ak.attention(q, k, v, schedule=schedule, impl=impl)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_schedule_of_inference_mode_serves_training(grad, impl, device):
    needs_triton()
    q, k, v = (x.to(device) for x in make([3, 5], [3, 5], 1, 1, 16, torch.float32))
    sizes = {"total_q": 8, "head_dim": 16, "dtype": q.dtype}
    with torch.inference_mode(), torch.set_grad_enabled(grad):
        boundaries = cu([3, 5]).to(device)
        schedule = ak.attention_schedule(boundaries, **sizes, impl=impl)
        ak.attention(q, k, v, cu_seqlens_q=boundaries, schedule=schedule, impl=impl)
    assert boundaries.is_inference()
    assert schedule.cu_seqlens_q is schedule.cu_seqlens_k
    assert not any(x.is_inference() for x in (schedule.cu_seqlens_q, *schedule.tables.values()))
    assert len(schedule.tables) == (0 if impl == "reference" else 1 + grad)
    found = layers(q, k, v, 1, impl, schedule=schedule)
    expected = layers(q, k, v, 1, impl, cu_seqlens_q=cu([3, 5]).to(device))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("wrong", [{"dtype": torch.int32}, {"dtype": None}, {"head_dim": 0}, {"head_dim": None}])
@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_a_schedule_of_no_head_or_no_floating_dtype(wrong, impl):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^attention_schedule: {name}="):
        ak.attention_schedule(cu([3]), **{"total_q": 3, "head_dim": 16, "dtype": torch.float32, **wrong}, impl=impl)


def test_boundaries_outside_the_tensors_are_not_followed():
    """On a GPU nobody reads them first; a table must not send a program beyond the tensors."""
    for bounds, keys in itertools.product(([-5, 20, 300], [0, 50, 20], [0, 2**31 - 1, 7]), (False, True)):
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
        table = module.tile_table(cu_seqlens, cu_seqlens, 64, 64, 16, True, keys)
        first, rows = table[:, [0, 2]], table[:, [1, 3]]
        assert (first >= 0).all()
        assert (rows >= 0).all()
        assert (first + rows <= 64).all()
