"""An audio-language model of your own over ``ak.nn``: encoder, projection and decoder, trained on packed sequences.

    python examples/audio_language_model.py

A recording is one second with one to three tones one after the other, the answer names them. ``main`` also trains in
bfloat16, under autocast, and compiled; the tests train it with DDP, FSDP2 and LoRA as well.
"""

import argparse

import torch
from torch import nn

import afn_kernels as ak

WIDTH, HEADS, SECONDS, FRAMES = 64, 4, 1, 25  # one row of audio per 40 ms
AUDIO, BEGIN, END, TONES = 0, 1, 2, 8  # token ids; tone i is END + 1 + i
VOCAB = END + 1 + TONES


class Layer(nn.Module):
    def __init__(self, causal: bool):
        super().__init__()
        self.norm1, self.norm2 = ak.nn.RMSNorm(WIDTH), ak.nn.RMSNorm(WIDTH)
        rotary = ak.nn.RotaryEmbedding(WIDTH // HEADS)
        self.attention = ak.nn.Attention(WIDTH, HEADS, kv_heads=2, rotary=rotary, causal=causal)
        self.mlp = ak.nn.SwiGLU(WIDTH, 2 * WIDTH)

    def forward(self, x, positions=None, cu_seqlens=None):
        x = x + self.attention(self.norm1(x), positions, cu_seqlens)
        return x + self.mlp(self.norm2(x))


class AudioLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = ak.nn.AudioFrontEnd(n_mels=80, width=WIDTH)
        self.encoder = nn.ModuleList([Layer(causal=False)])
        self.pool, self.project = ak.nn.PooledNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.decoder = nn.ModuleList([Layer(causal=True), Layer(causal=True)])
        self.norm, self.head = ak.nn.RMSNorm(WIDTH), ak.nn.LinearCrossEntropy(WIDTH, VOCAB)

    def forward(self, pcm_BT, tokens_N, rows, labels_N, positions_N, cu_seqlens):
        """The loss: pcm [B, T], tokens [N] of all texts end to end, and the rows of them that stand for audio."""
        x_BSD = self.front(pcm_BT)
        for layer in self.encoder:
            x_BSD = layer(x_BSD)
        audio = self.project(self.pool(x_BSD)).flatten(0, 1)
        x_ND = ak.merge_embeddings(self.embed(tokens_N), audio, rows)
        for layer in self.decoder:
            x_ND = layer(x_ND, positions_N, cu_seqlens)
        return self.head(self.norm(x_ND), labels_N)


def batch(recordings: int = 16) -> list[torch.Tensor]:
    """What the model takes: pcm, tokens, rows of audio, labels of the next token, positions, boundaries."""
    time, pcm, texts = torch.arange(16_000 * SECONDS) / 16_000, [], []
    for count in torch.randint(1, 4, (recordings,)).tolist():
        tones = torch.randint(TONES, (count,))
        parts = [torch.sin(2 * torch.pi * 200 * 1.5**tone * time) for tone in tones.tolist()]
        pcm.append(torch.cat([part[: len(time) // count] for part in parts] + [time[: len(time) % count]]) / 2)
        answer = [BEGIN, *(END + 1 + tones).tolist(), END]
        texts.append(torch.tensor([AUDIO] * FRAMES + answer))
    tokens = torch.cat(texts)
    labels = torch.cat([torch.cat((text[1:], text.new_tensor([-100]))) for text in texts])
    labels[(labels == AUDIO) | (labels == BEGIN)] = -100
    positions = torch.cat([torch.arange(float(len(text))) for text in texts])
    cu_seqlens = torch.tensor([0] + [len(text) for text in texts]).cumsum(0).to(torch.int32)
    return [torch.stack(pcm), tokens, (tokens == AUDIO).nonzero().flatten(), labels, positions, cu_seqlens]


def train(model: nn.Module, steps: int, autocast: bool = False) -> list[float]:
    losses, trained = [], [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(steps):
        inputs = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(*inputs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 50, dtype: torch.dtype = torch.float32, autocast: bool = False, compiled: bool = False):
    torch.manual_seed(0)
    model = AudioLanguageModel().to(dtype)
    if compiled:
        model.compile()
    losses = train(model, steps, autocast)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    main(args.steps, compiled=args.compile)
