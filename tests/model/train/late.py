"""A stand-in for the copy streams of a GPU that copies as late as it may, and notices what was freed too early."""

import weakref

import torch

LANES = []


class TensorPlace:
    """Where a tensor is, without holding its memory."""

    def __init__(self, tensor):
        self.storage = weakref.ref(tensor.untyped_storage())
        self.shape = tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()

    def tensor(self):
        storage, (dtype, *where) = self.storage(), self.shape
        assert storage is not None, "memory was let go of before its copy was done"
        return torch.empty(0, dtype=dtype).set_(storage, *where)


class LateLane:
    """What ``afn_model.train.host_memory.Lane`` promises, and no more: a copy is made when somebody waits for it."""

    def __init__(self, device):
        self.queue, self.done = [], 0
        LANES.append(self)

    def copy(self, to, of, *after):
        self.queue.append((TensorPlace(to), TensorPlace(of), after))
        return self, len(self.queue)

    def reached(self):
        return None  # the stream that computes is never behind

    def wait(self, event):
        if event is not None:
            event[0].run(event[1])

    def run(self, number):
        while self.done < number:
            to, of, after = self.queue[self.done]
            self.done += 1
            for event in after:
                self.wait(event)
            with torch.no_grad():
                to.tensor().copy_(of.tensor())


def lanes(monkeypatch, *modules):
    """Puts late lanes in the place of a module's."""
    LANES.clear()
    for module in modules:
        monkeypatch.setattr(module, "Lane", LateLane)


def finish():
    """Copies that nobody has waited for still have the memory that they read and write."""
    assert LANES
    for lane in LANES:
        assert lane.queue
        lane.run(len(lane.queue))
