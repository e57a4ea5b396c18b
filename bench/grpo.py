"""GRPO's forward and backward over 10 minutes of audio tokens: the prompt once, against a copy of it for every answer.

    python -m bench.grpo [--out results.jsonl] [--rounds 1]

Only the language model is timed, a very small one on a CPU, at the number of tokens of the real thing. Nearly all its
work is attention over the prompt; in a large model it is the products with the weights, which shrink by the ratio of
tokens.
"""

import time

import torch

import afn_kernels as ak
from afn_model import AFNext
from afn_model.audio.frames import SAMPLE_RATE, audio_tokens
from afn_model.config import AudioConfig, Config, TextConfig
from afn_model.prompt.batch import Batch
from bench.measure import main

MINUTES, GROUP, ANSWER = 10, 8, 64


def packed(rows: list[torch.Tensor]) -> Batch:
    """Sequences of token ids as a batch without audio."""
    lengths = torch.tensor([0] + [len(row) for row in rows])
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.cat(rows), lengths.cumsum(0).to(torch.int32), None, none, none)


def seconds(call, model: AFNext) -> float:
    model.zero_grad()
    began = time.perf_counter()
    call().sum().backward()
    return time.perf_counter() - began


def measure(rounds: int, device: str) -> dict:
    """Seconds of forward and backward for both, the ratio of tokens, and how far the log-probabilities differ."""
    torch.manual_seed(0)
    prompt_tokens = audio_tokens(60 * MINUTES * SAMPLE_RATE)
    text = TextConfig(vocab_size=512, width=64, layers=2, heads=2, kv_heads=1, ffn=192, max_positions=16_384)
    audio = AudioConfig(width=64, layers=1, heads=1, ffn=64)
    model = AFNext(Config(audio=audio, text=text, audio_token_id=511, stop_token_ids=(0,))).to(device)
    prompt = torch.randint(1, 500, (prompt_tokens,))
    answers = torch.randint(1, 500, (GROUP, ANSWER)).tolist()
    alone = packed([prompt])
    copies = packed([torch.cat((prompt, torch.tensor(answer[:-1]))) for answer in answers])
    targets = torch.tensor(answers).flatten().to(device)
    logprobs = {}

    def shared():
        return logprobs.setdefault("shared", model.answer_logprobs(alone, [answers]))

    def naive():
        hidden, _ = model.hidden(copies)
        rows = hidden.view(GROUP, -1, hidden.shape[1])[:, prompt_tokens - 1 :].flatten(0, 1)
        return logprobs.setdefault("naive", ak.linear_logprob(rows, model.lm_head.weight, targets))

    times = {}
    for name, call in (("shared", shared), ("naive", naive)):
        found = []
        for _ in range(rounds):
            logprobs.pop(name, None)
            found.append(seconds(call, model))
        times[name] = round(min(found), 2)
        print(f"{name:<8}{times[name]:9.2f} s")
    error = float((logprobs["shared"] - logprobs["naive"]).detach().abs().max())
    tokens = {"shared": prompt_tokens + GROUP * (ANSWER - 1), "naive": GROUP * (prompt_tokens + ANSWER - 1)}
    ratio = round(times["naive"] / times["shared"], 2)
    fewer = round(tokens["naive"] / tokens["shared"], 2)
    print(f"{ratio} times as fast, {fewer} times fewer tokens, log-probabilities differ by {error:.1e}")
    return {
        "benchmark": "grpo_shared_prefix",
        "prompt_tokens": prompt_tokens,
        "answers": GROUP,
        "answer_tokens": ANSWER,
        "seconds": times,
        "tokens": tokens,
        "ratio": ratio,
        "fewer_tokens": fewer,
        "largest_difference": error,
    }


if __name__ == "__main__":
    main(__doc__, measure, rounds=1, devices=("cpu", "cuda"))
