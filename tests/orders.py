"""Plain PyTorch in other orders of summation: what a budget is drawn from."""

from afn_kernels.verify.orders import SHUFFLED, OtherOrder, aten, in_orders

__all__ = ["SHUFFLED", "OtherOrder", "aten", "in_orders"]
