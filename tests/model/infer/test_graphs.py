"""Graphs of rows with a stand-in for their recording. That tokens are the same: test_engine.py."""

import warnings

import pytest
import torch

from afn_model.infer.graphs import GraphCapture, RowGraphs, RowInputs
from tests.captures import stand_in

PAGES = 5


def forward(rows: RowInputs) -> torch.Tensor:
    """[R, 2]: what depends on everything that a row has, and on nothing of others."""
    place = torch.arange(rows.table.shape[1])
    read = (rows.table * (place < rows.lengths[:, None])).sum(1)
    return torch.stack([rows.ids + 100 * rows.positions + read, rows.slots.float()], 1)


def rows_of(count: int, seed: int, pages: int = 3) -> RowInputs:
    generator = torch.Generator().manual_seed(seed)
    return RowInputs(
        torch.randint(1, 50, (count,), generator=generator),
        torch.rand(count, generator=generator),
        torch.randint(0, 90, (count,), generator=generator),
        torch.randint(1, 9, (count, pages), generator=generator, dtype=torch.int32),
        torch.randint(1, pages + 1, (count,), generator=generator, dtype=torch.int32),
    )


def graphs_of(sizes=(1, 2, 4)):
    recordings = []

    def record(run):
        out = run().clone()
        recordings.append(out)
        return lambda: out.copy_(run()), out

    return RowGraphs(forward, PAGES, torch.device("cpu"), sizes, record), recordings


def test_a_graph_for_each_size_is_replayed_for_fewer_rows_too():
    graphs, recordings = graphs_of()
    for seed, count in enumerate((3, 4, 1, 3, 2, 4, 1)):
        rows = rows_of(count, seed, pages=1 + seed % PAGES)
        assert torch.equal(graphs(rows), forward(rows))
    assert sorted(len(out) for out in recordings) == [1, 2, 4]


def test_rows_that_are_nobodys_write_nothing_and_read_one_key():
    graphs, _ = graphs_of()
    graphs(rows_of(4, 0))
    graphs(rows_of(3, 1))
    inputs, _, out = graphs.graphs[4]
    assert inputs.slots[3] == out[3, 1] == -1
    assert inputs.lengths[3] == 1


def test_what_is_too_large_is_not_captured():
    graphs, recordings = graphs_of()
    for rows in (rows_of(5, 0), rows_of(2, 1, pages=PAGES + 1)):
        assert torch.equal(graphs(rows), forward(rows))
    assert not recordings


def test_a_failed_capture_gives_the_stream_back(monkeypatch):
    streams, here, captures = stand_in(monkeypatch)
    capture = GraphCapture()

    def run():
        if streams[0] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="capturing"):
        capture(run)
    assert streams[0] in ("default", here)
    for _ in range(3):
        capture(lambda: torch.zeros(1))
    modes, pools = zip(*captures, strict=True)
    assert modes == ("thread_local",) * 4
    assert len({id(pool) for pool in pools[1:]}) == 1, "each graph has memory of its own"
    assert pools[0] is not pools[1]


def test_where_a_capture_fails_decoding_goes_on_without():
    graphs, recordings = graphs_of()
    graphs(rows_of(2, 0))
    tried, record = [], graphs.record

    def fail(run):
        tried.append(run)
        raise RuntimeError("CUDA error: operation not permitted\nmore lines")

    graphs.record = fail
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed, count in enumerate((4, 1, 3, 2)):
            rows = rows_of(count, seed)
            assert torch.equal(graphs(rows), forward(rows))
    assert [str(one.message) for one in said] == [
        "no CUDA graph of 4 rows, decoding goes on without: CUDA error: operation not permitted"
    ]
    assert graphs.failed
    assert len(tried) == 1
    assert len(recordings) == 1  # what was captured before is replayed
    graphs.record = record
    graphs(rows_of(1, 9))
    assert list(graphs.graphs) == [2]
