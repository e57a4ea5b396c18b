"""Callables that a plan names as ``module:function``."""

from afn_model.checks import named as named
