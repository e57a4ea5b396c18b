"""Uninitialised memory full of NaN: what a kernel does not write shows."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def poisoned():
    """Every uninitialised tensor that Python code asks for is full of NaN (or of the lowest integer)."""

    def poison(make):
        def made(*args, **kwargs):
            x = make(*args, **kwargs)
            if x.device.type == "meta":
                return x
            if x.is_floating_point():
                return x.fill_(float("nan"))
            return x if x.dtype == torch.bool else x.fill_(torch.iinfo(x.dtype).min)

        return made

    with (
        mock.patch.object(torch, "empty", poison(torch.empty)),
        mock.patch.object(torch, "empty_like", poison(torch.empty_like)),
        mock.patch.object(torch, "empty_strided", poison(torch.empty_strided)),
        mock.patch.object(Tensor, "new_empty", poison(Tensor.new_empty)),
    ):
        yield
