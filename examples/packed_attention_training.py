"""Train a small decoder on sequences of different lengths without padding: packed causal attention.

    python examples/packed_attention_training.py

Sequences lie end to end, ``cu_seqlens`` says where each begins. Each is a few random tokens, said twice.
"""

import torch
from torch import nn

import afn_kernels as ak

VOCAB, WIDTH, HEADS, KV_HEADS, DIM = 32, 64, 4, 2, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = ak.nn.RMSNorm(WIDTH), ak.nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * DIM), nn.Linear(HEADS * DIM, WIDTH)
        self.mlp = ak.nn.SwiGLU(WIDTH, 2 * WIDTH)

    def forward(self, x_TD, positions, cu_seqlens):
        q, k, v = self.qkv(self.norm1(x_TD)).unflatten(-1, (-1, DIM)).split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        q, k = ak.rotary(q, k, positions, 100.0 ** (-torch.arange(0, DIM, 2) / DIM))
        x_TD = x_TD + self.out(ak.attention(q, k, v, cu_seqlens_q=cu_seqlens, causal=True).flatten(1))
        return x_TD + self.mlp(self.norm2(x_TD))


def batch(sequences: int = 48):
    """Tokens [T], labels [T] of the next token where it can be known, positions [T], boundaries [N + 1]."""
    firsts = [torch.randint(VOCAB, (int(n),)) for n in torch.randint(3, 12, (sequences,))]
    tokens = torch.cat([torch.cat((first, first)) for first in firsts])
    labels = torch.cat([torch.cat((torch.full_like(f[1:], -100), f, f.new_tensor([-100]))) for f in firsts])
    positions = torch.cat([torch.arange(2.0 * len(first)) for first in firsts])
    cu_seqlens = torch.tensor([0] + [2 * len(first) for first in firsts]).cumsum(0).to(torch.int32)
    return tokens, labels, positions, cu_seqlens


def main(steps: int = 150) -> list[float]:
    torch.manual_seed(0)
    embed, one, two, head = nn.Embedding(VOCAB, WIDTH), Block(), Block(), ak.nn.LinearCrossEntropy(WIDTH, VOCAB)
    optimiser = torch.optim.AdamW(nn.ModuleList([embed, one, two, head]).parameters(), lr=3e-3)
    losses = []
    for step in range(steps + 1):
        tokens, labels, *where = batch()
        loss = head(two(one(embed(tokens), *where), *where), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step % 25 == 0:
            print(f"step {step:3d}  loss {loss:.3f}  {len(tokens)} tokens in one row")
    return losses


if __name__ == "__main__":
    main()
