"""A codec small enough for tests, and sounds for it."""

import torch

from afn_model.speech.codec import Codec
from afn_model.speech.config import CodecConfig
from afn_model.speech.quantizer import ResidualQuantizer

CONFIG = CodecConfig(8000, 32, 8, (16, 24), (2, 3), 2, 5, 12, 4, 16)  # a frame of 48 samples


def codec(seed: int = 0, config: CodecConfig = CONFIG) -> Codec:
    """Random weights; blocks and codes large enough that everything matters."""
    torch.manual_seed(seed)
    made = Codec(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("scale", "bias")):
                parameter.normal_()
        made.head.linear.bias.sub_(3.0)
    return made


def sound(n: int, seed: int = 1, batch: int = 1) -> torch.Tensor:
    return 0.3 * torch.randn(batch, n, generator=torch.Generator().manual_seed(seed))


def quantizer(**changes) -> ResidualQuantizer:
    from dataclasses import replace

    torch.manual_seed(0)
    return ResidualQuantizer(replace(CONFIG, **changes))
