"""The boundary between kernels and PyTorch: eager calls launch directly, torch.compile sees a registered op."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from afn_kernels import _verdicts


def _keep_inputs(ctx, inputs: tuple, output) -> None:
    ctx.save_for_backward(*inputs)


def _as_asked(backward: Callable, target: str) -> Callable:
    """``backward`` with one gradient for every input: None for inputs that need no gradient."""

    def run(ctx, *grads):
        try:
            found = backward(ctx, *grads)
        except Exception as error:
            _verdicts.failed_in_launch(target, error)
            raise
        found = found if isinstance(found, tuple) else (found,)
        wanted = ctx.needs_input_grad
        assert len(found) <= len(wanted)
        found = tuple(x if want else None for x, want in zip(found, wanted, strict=False))
        return found + (None,) * (len(wanted) - len(found))

    return run


class Boundary:
    """An op ``afn::<name>`` whose launch is imported on first use.

    An eager call on plain tensors runs the launch at once, inside an ``autograd.Function`` only where a gradient is
    wanted. Under torch.compile, fake tensors or tensor subclasses it goes through the registered op.

    Args:
        schema: the name; the schema is then that of ``fake``'s annotations. Or name and schema, where ``fake`` does
            not spell its arguments out: ``"rote(Tensor x, bool inverse) -> Tensor"``. Calls are positional. An output
            the call does not need is an empty tensor: a schema has no optional outputs.
        target: ``"module:attribute"`` of the launch; it must not return a tensor that aliases an argument.
        fake: the launch on shapes alone.
        writes: the arguments that the launch writes into, where the schema is ``fake``'s.
        setup_context: ``(ctx, inputs, output)``, as of ``torch.autograd.Function``; default: keeps all inputs.
        backward: ``(ctx, *grads)``, returns gradients of the first inputs; None is filled in for the others and put
            where nobody asks for one. It calls other boundaries, never a kernel itself, so that it too can be traced.
        eager_backward: that of eager calls, where it differs: it may reuse outputs that nobody else can have.
    """

    def __init__(
        self,
        schema: str,
        target: str,
        fake: Callable,
        *,
        writes: tuple[str, ...] = (),
        setup_context: Callable = _keep_inputs,
        backward: Callable | None = None,
        eager_backward: Callable | None = None,
    ):
        if "(" not in schema:
            schema += torch.library.infer_schema(fake, mutates_args=writes)
        self.name, self._target = schema.partition("(")[0], target
        qualified = f"afn::{self.name}"
        torch.library.define(qualified, schema[len(self.name) :])
        torch.library.impl(qualified, ("cpu", "cuda"), self._launch_in_graph)
        torch.library.register_fake(qualified, fake)
        self._function = None
        if backward:
            torch.library.register_autograd(qualified, _as_asked(backward, target), setup_context=setup_context)
            body = {
                "forward": staticmethod(self.launch),
                "setup_context": staticmethod(setup_context),
                "backward": staticmethod(once_differentiable(_as_asked(eager_backward or backward, target))),
            }
            self._function = type(self.name, (torch.autograd.Function,), body)
        BOUNDARIES[self.name] = self

    @cached_property
    def _launch(self) -> Callable:
        module, attribute = self._target.split(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def op(self):
        """``torch.ops.afn.<name>.default``."""
        return getattr(torch.ops.afn, self.name).default

    def launch(self, *args):
        first = next((x for x in args if isinstance(x, torch.Tensor)), None)
        try:
            if first is not None and first.is_cuda and first.device.index != torch.cuda.current_device():
                with torch.cuda.device(first.device):
                    return self._launch(*args)
            return self._launch(*args)
        except Exception as error:
            _verdicts.note_launch(error)
            raise

    def _launch_in_graph(self, *args):
        try:
            return self.launch(*args)
        except Exception as error:
            _verdicts.failed_in_launch(self._target, error)
            raise

    def __call__(self, *args):
        if torch.compiler.is_compiling() or not plain(*args):
            return self.op(*args)
        if forward_ad._current_level >= 0 and any(has_tangent(x) for x in args):
            raise NotImplementedError(f"{self.name} has no forward-mode derivative; impl='reference' has one")
        if self._function and torch.is_grad_enabled() and _wants_gradient(args):
            return self._function.apply(*args)
        return self.launch(*args)


def plain(*args) -> bool:
    """Whether every tensor is an ordinary one: not fake, functional or another subclass."""
    for x in args:  # noqa: SIM110  half the time of all(...)
        if type(x) not in _PLAIN and isinstance(x, torch.Tensor):
            return False
    return True


def has_tangent(x) -> bool:
    """Whether x is a dual tensor of forward-mode differentiation."""
    inside = forward_ad._current_level >= 0 and isinstance(x, torch.Tensor)
    return inside and forward_ad.unpack_dual(x).tangent is not None


def _wants_gradient(args: Sequence) -> bool:
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)


_PLAIN = (torch.Tensor, torch.nn.Parameter)
BOUNDARIES: dict[str, Boundary] = {}
