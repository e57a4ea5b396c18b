"""A stand-in for the capture of CUDA graphs: as PyTorch's, one that fails stays on its stream."""

import contextlib
import types

import torch


class ReplayedGraph:
    memory: object = None

    def replay(self) -> None: ...

    def pool(self) -> object:
        return self.memory


def stand_in(monkeypatch) -> tuple[list, object, list[tuple[str, object]]]:
    """The stream that is current, as a list of one, "capture" during a capture; what stands for the one outside of it;
    and the error mode and the memory pool of each capture."""
    streams, captures = ["default"], []

    @contextlib.contextmanager
    def restored(stream):
        before, streams[0] = streams[0], stream
        try:
            yield
        finally:
            streams[0] = before

    @contextlib.contextmanager
    def graph(captured, pool=None, capture_error_mode="global"):
        captured.memory = object() if pool is None else pool
        captures.append((capture_error_mode, captured.memory))
        streams[0] = "capture"
        yield
        streams[0] = "default"

    side, here = (types.SimpleNamespace(wait_stream=lambda _: None) for _ in range(2))
    fakes = {"Stream": lambda: side, "stream": restored, "graph": graph, "CUDAGraph": ReplayedGraph,
             "current_stream": lambda: here if streams[0] == "default" else streams[0]}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return streams, here, captures
