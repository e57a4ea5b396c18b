"""Audio features into the language model's embedding space: W₂ GELU(W₁ x + b₁) + b₂."""

from torch import Tensor, nn

import afn_kernels as ak
from afn_model.network.linear import linear, product


class Adaptor(nn.Module):
    def __init__(self, audio_width: int, text_width: int):
        super().__init__()
        self.linear_1 = nn.Linear(audio_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, x_ND: Tensor) -> Tensor:
        return linear(self.linear_2, ak.bias_gelu(product(self.linear_1, x_ND), self.linear_1.bias))
