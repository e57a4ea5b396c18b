"""A thread that steps what it is given."""

import asyncio
from contextlib import suppress

import pytest

from afn_model.serve.step_thread import EngineDied, StepThread


class CountingThread(StepThread[list, int]):
    """Steps while the list is not empty; a step takes its last number and fails where that is negative."""

    def __init__(self, numbers):
        super().__init__(numbers, "counter")
        self.grown, self.left = [], False

    def busy(self):
        return bool(self.engine)

    def step(self):
        number = self.engine.pop()
        if number < 0:
            raise RuntimeError("negative")
        return [number]

    def stepped(self, seconds, grown):
        assert seconds >= 0
        self.grown.append(grown)

    def leave(self):
        self.left = True


@pytest.mark.parametrize(("numbers", "dies"), [([1, -1, -1, 2, -1, -1], False), ([1, -1, -1, -1], True)])
def test_three_failures_in_a_row_end_it(numbers, dies):
    thread = CountingThread([])
    thread.start()

    async def run():
        await thread.call(lambda engine: engine.extend(numbers))
        while thread.alive and await thread.call(len):
            pass

    if dies:
        with suppress(EngineDied):
            asyncio.run(run())
        with pytest.raises(EngineDied, match="the counter has died"):
            asyncio.run(thread.call(len))
        assert thread.grown == [[], []]
        assert isinstance(thread.error, EngineDied)
    else:
        asyncio.run(run())
        assert thread.grown == [[], [], [2], [], [], [1]]
    thread.stop()
    assert thread.left
    assert not thread.alive
    thread.post(lambda engine: engine.append(1))  # nobody does it
    assert thread.engine == ([1] if dies else [])
