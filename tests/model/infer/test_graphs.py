"""Graphs of rows with a stand-in for their recording. That tokens are the same: test_engine.py."""

import pytest
import torch

from afn_model.infer.graphs import RowGraphs, RowInputs, capture
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
    streams, here, modes = stand_in(monkeypatch)

    def run():
        if streams[0] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="capturing"):
        capture(run)
    assert streams[0] in ("default", here)
    capture(lambda: torch.zeros(1))
    assert modes == ["thread_local"] * 2
