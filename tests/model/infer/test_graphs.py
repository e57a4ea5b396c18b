"""A capture that fails leaves PyTorch as it was; threads that move pages do not end one."""

import contextlib
import types

import pytest
import torch

from afn_model.infer.graphs import capture


class _ReplayedGraph:
    def replay(self) -> None: ...


def test_a_failed_capture_gives_the_stream_back(monkeypatch):
    streams, modes = ["default"], []

    @contextlib.contextmanager
    def restored(stream):
        before, streams[0] = streams[0], stream
        try:
            yield
        finally:
            streams[0] = before

    @contextlib.contextmanager
    def graph(_, capture_error_mode="global"):  # as PyTorch's: one that fails stays on its stream
        modes.append(capture_error_mode)
        streams[0] = "capture"
        yield
        streams[0] = "default"

    side = types.SimpleNamespace(wait_stream=lambda _: None)
    here = types.SimpleNamespace(wait_stream=lambda _: None)
    fakes = {"Stream": lambda: side, "stream": restored, "graph": graph, "CUDAGraph": _ReplayedGraph,
             "current_stream": lambda: here if streams[0] == "default" else streams[0]}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def run():
        if streams[0] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="capturing"):
        capture(run)
    assert streams[0] in ("default", here)
    capture(lambda: torch.zeros(1))
    assert modes == ["thread_local"] * 2
