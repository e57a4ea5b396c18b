"""Blocks and strided convolutions against PyTorch's convolutions."""

import torch
from torch.nn import functional as F

from afn_model.speech.convnext import ConvNeXtBlock, Lengthen, Shorten


def test_a_block_is_its_formula_and_its_state_what_came_before():
    torch.manual_seed(0)
    block, x = ConvNeXtBlock(6, 5, 0.3), torch.randn(2, 20, 6)
    conv = F.conv1d(F.pad(x.transpose(1, 2), (4, 0)), block.taps[:, None], block.bias, groups=6).transpose(1, 2)
    wanted = x + 0.3 * block.down(F.gelu(block.up(F.layer_norm(conv, (6,)))))
    assert torch.allclose(block(x), wanted, atol=1e-5)
    state = {}
    parts = [block(part, state) for part in x.split([1, 2, 7, 10], 1)]
    assert torch.allclose(torch.cat(parts, 1), wanted, atol=1e-5)
    assert torch.equal(state[block], x[:, -4:])


def test_strided_convolutions_are_pytorchs():
    torch.manual_seed(0)
    shorten, lengthen, x = Shorten(6, 10, 4), Lengthen(10, 6, 4), torch.randn(2, 20, 6)
    kernel = shorten.linear.weight.reshape(10, 4, 6).transpose(1, 2)
    normed = F.layer_norm(x, (6,)).transpose(1, 2)
    assert torch.allclose(shorten(x), F.conv1d(normed, kernel, shorten.linear.bias, 4).transpose(1, 2), atol=1e-5)
    y = torch.randn(2, 5, 10)
    kernel = lengthen.linear.weight.reshape(4, 6, 10).permute(2, 1, 0)
    made = F.conv_transpose1d(y.transpose(1, 2), kernel, stride=4).transpose(1, 2)
    made = F.layer_norm(made + lengthen.linear.bias.reshape(4, 6).repeat(5, 1), (6,))
    assert torch.allclose(lengthen(y), made, atol=1e-5)
