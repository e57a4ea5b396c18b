"""Audio Flamingo Next: model, processor, training, inference and evaluation over ``afn_kernels``."""

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afn_model.afnext import AFNext
    from afn_model.audio.decode import load_audio
    from afn_model.config import ModelConfig, preset
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.prompt.batch import Batch
    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.session import Session

__all__ = ["AFNext", "AFNextProcessor", "Batch", "ModelConfig", "SamplingParams", "Session", "load_audio", "preset"]

_HOME = {
    "AFNext": "afn_model.afnext",
    "AFNextProcessor": "afn_model.prompt.processor",
    "Batch": "afn_model.prompt.batch",
    "Config": "afn_model.config",  # the former name of ModelConfig, until the next version
    "ModelConfig": "afn_model.config",
    "SamplingParams": "afn_model.infer.sampling_params",
    "Session": "afn_model.session",
    "load_audio": "afn_model.audio.decode",
    "preset": "afn_model.config",
}


def __getattr__(name: str):
    # Imported on first use, so that `afn --help` does not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'afn_model' has no attribute {name!r}")
    if name == "Config":
        warnings.warn("afn_model: Config is now called ModelConfig", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(_HOME[name]), name)
