"""A reference that is lent, and the order in which it and the policy are asked."""

from collections.abc import Callable
from contextlib import contextmanager

from afn_model import AFNext
from afn_model.train.grpo import frozen_reference


def lent_in_order(model: AFNext) -> tuple[Callable, list]:
    """What lends a copy of the model that could learn, as a policy without adapters would, and who did what when."""
    frozen, order = frozen_reference(model).requires_grad_(), []

    @contextmanager
    def lent():
        order.append("lent")
        yield frozen
        order.append("back")

    for name, network in (("reference", frozen), ("policy", model)):
        network.language_model.register_forward_hook(
            lambda module, given, out, name=name: order.append((name, out.requires_grad))
        )
    return lent, order
