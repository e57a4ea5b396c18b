"""A few rates of this machine for ``afn train --plan --calibration FILE``: seconds on a GPU.

    python -m bench.calibrate --device cuda --out calibration.json

Measured: products of 8,192 rows with a decoder layer's weights, in 16 bits and in FP8, packed causal attention by the
fastest provider and by the kernel that a ring calls, attention of encoder windows, copies, the host's time for a
launch, a decoder block's forward and backward, a decoding step of GRPO's samples, reading of a FLAC file on one core,
and with a second GPU copies between two. On a CPU the sizes are small: it shows that the command works, and says
nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

import afn_kernels as ak
from afn_model import AFNext
from afn_model.audio.decode import load_audio
from afn_model.config import AudioConfig, ModelConfig, TextConfig
from afn_model.files import write_text
from afn_model.host import machine
from afn_model.network.language_model import LanguageModel
from afn_model.prompt.batch import Batch
from afn_model.train.rates import ASSUMED
from afn_model.train.step_time import layer_bytes, layer_products


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Args:
        text: of the language model; its number of layers is that of the whole model, which is never made.
        rows: tokens of products and of a block.
        documents: that the rows are packed of.
        windows: encoder windows of 1,500 frames.
        copied: bytes.
        samples, prompt, steps: of the decoding.
        audio: seconds of a recording that is read.
        rounds: of each measurement, of which the fastest counts.
    """

    text: TextConfig
    rows: int = 8192
    documents: int = 2
    windows: int = 16
    copied: int = 1 << 30
    samples: int = 20
    prompt: int = 1024
    steps: int = 32
    audio: int = 120
    rounds: int = 5


GPU = Sizes(TextConfig())
CPU = Sizes(
    TextConfig(vocab_size=512, width=64, layers=2, heads=4, kv_heads=2, ffn=128),
    rows=256,
    windows=1,
    copied=1 << 20,
    samples=2,
    prompt=16,
    steps=4,
    audio=2,
    rounds=2,
)


class Calibration:
    """Measures on one device, in bfloat16 on a GPU and in float32 on a CPU."""

    def __init__(self, device: str, sizes: Sizes):
        self.device, self.sizes = torch.device(device), sizes
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def seconds(self, call: Callable[[], Any], rounds: int | None = None) -> float:
        """The fastest of the rounds, after one to warm up."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else (lambda: None)
        best = float("inf")
        for number in range((rounds or self.sizes.rounds) + 1):
            wait()
            start = time.perf_counter()
            call()
            wait()
            if number:
                best = min(best, time.perf_counter() - start)
        return best

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype).mul_(0.02).requires_grad_(grad)

    def matmul(self) -> float:
        text, rows = self.sizes.text, self.sizes.rows
        x, weight = self.random(rows, text.width), self.random(text.ffn, text.width)
        return 2 * rows * weight.numel() / self.seconds(lambda: x @ weight.T)

    def fp8(self) -> float:
        """FLOP/s of the same product of codes in blocks of 128."""
        text, rows = self.sizes.text, self.sizes.rows
        x, scale_x = ak.quantize_fp8(self.random(rows, text.width), block=(1, 128))
        w, scale_w = ak.quantize_fp8(self.random(text.ffn, text.width), block=(128, 128))
        return 2 * rows * w.numel() / self.seconds(lambda: ak.linear_fp8(x, w, scale_x, scale_w))

    def cu_seqlens(self) -> Tensor:
        each = self.sizes.rows // self.sizes.documents
        return torch.arange(0, self.sizes.rows + 1, each, dtype=torch.int32, device=self.device)

    def attended(self) -> float:
        """FLOPs of a causal forward, half of the squares counted."""
        sizes, text = self.sizes, self.sizes.text
        return 2.0 * text.heads * text.head_dim * sizes.documents * (sizes.rows / sizes.documents) ** 2

    def attention(self, *, own: bool) -> tuple[float, float]:
        """FLOP/s of forward and backward: of the fastest provider, or of the kernel that gives what a ring needs."""
        text, cu = self.sizes.text, self.cu_seqlens()
        q = self.random(self.sizes.rows, text.heads, text.head_dim, grad=True)
        k, v = (self.random(self.sizes.rows, text.kv_heads, text.head_dim, grad=True) for _ in range(2))
        options: dict[str, Any] = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "causal": True, "return_lse": own}

        def forward() -> Tensor:
            found = ak.attention(q, k, v, **options)
            return found[0] if isinstance(found, tuple) else found

        out = forward()
        gradient = torch.randn_like(out)

        def both() -> None:
            torch.autograd.grad(forward(), (q, k, v), gradient)

        with torch.no_grad():
            once = self.seconds(forward)
        back = max(self.seconds(both) - once, 1e-9)
        return self.attended() / once, 2.5 * self.attended() / back

    def encoder_attention(self) -> float:
        audio, windows = AudioConfig(), self.sizes.windows
        heads = audio.heads if self.device.type == "cuda" else 1
        q, k, v = (self.random(1500 * windows, heads, audio.head_dim) for _ in range(3))
        cu = torch.arange(0, 1500 * windows + 1, 1500, dtype=torch.int32, device=self.device)
        taken = self.seconds(lambda: ak.attention(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu))
        return 4.0 * heads * audio.head_dim * windows * 1500**2 / taken

    def hbm(self) -> float:
        x = torch.empty(self.sizes.copied, dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        return 2 * self.sizes.copied / self.seconds(lambda: y.copy_(x))

    def launch(self) -> float:
        """Host seconds of one op, with PyTorch's own cost, as in an eager block."""
        x, number = torch.zeros(1, device=self.device), 500

        def many() -> float:
            start = time.perf_counter()
            for _ in range(number):
                x.add_(1)
            return time.perf_counter() - start

        many()
        return min(many() for _ in range(self.sizes.rounds)) / number

    def block(self, rates: dict[str, float]) -> float:
        """Seconds of a decoder block's forward and backward, without attention, over what the model says of them."""
        sizes, text = self.sizes, self.sizes.text
        x, cu = self.random(sizes.rows, text.width, grad=True), self.cu_seqlens()
        positions = torch.arange(sizes.rows, device=self.device, dtype=torch.float32)
        taken = []
        for layers in (1, 3):
            model = LanguageModel(replace(text, layers=layers, vocab_size=16)).to(self.device, self.dtype)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.02)

            def both(model: LanguageModel = model) -> None:
                model.zero_grad(set_to_none=True)
                model(x, positions, cu_seqlens=cu).sum().backward()

            taken.append(self.seconds(both))
        attention = self.attended() * (1 / rates["attention"] + 2.5 / rates["attention_backward"])
        said = 3 * sizes.rows * (layer_products(text) / rates["matmul"] + layer_bytes(text) / rates["hbm"])
        return max((taken[1] - taken[0]) / 2 - attention, 0.1 * said) / said

    def token(self) -> float:
        """Seconds of a decoding step of the whole model's samples: those of few layers, and so many more."""
        sizes, text = self.sizes, self.sizes.text
        ids = torch.zeros(sizes.prompt, dtype=torch.int64)
        none = torch.zeros(0, dtype=torch.int64)
        batch = Batch(ids, torch.tensor([0, sizes.prompt], dtype=torch.int32), None, none, none)
        taken = []
        for layers in (1, 3):
            small = AudioConfig(n_mels=80, width=64, layers=1, heads=1, ffn=64)
            config = ModelConfig(
                audio=small,
                text=replace(text, layers=layers),
                audio_token_id=text.vocab_size - 1,
                audio_bos_token_id=None,
                audio_eos_token_id=None,
                stop_token_ids=(text.vocab_size - 2,),
            )
            with torch.device(self.device):
                model = AFNext(config).to(self.dtype).eval()

            def decode(steps: int, model: AFNext = model) -> None:
                with torch.no_grad():
                    model.sample(batch, steps, seed=0, samples=sizes.samples, stop_token_ids=())

            few, many = (self.seconds(lambda n=n: decode(n), 2) for n in (sizes.steps // 4, sizes.steps))
            taken.append(max(many - few, 1e-9) / (sizes.steps - sizes.steps // 4))
        return max(taken[0] + max(taken[1] - taken[0], 0.0) / 2 * (text.layers - 1), 1e-6)

    def decoded(self) -> float:
        """Seconds of audio that a second of one core reads: FLAC at 44.1 kHz in stereo, resampled."""
        length = self.sizes.audio
        sound = np.random.default_rng(0).normal(scale=0.1, size=(44_100 * length, 2))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sound.flac"
            soundfile.write(file, sound, 44_100)
            load_audio(file)
            start = time.perf_counter()
            load_audio(file)
            return length / (time.perf_counter() - start)

    def nvlink(self) -> float:
        x = torch.empty(self.sizes.copied, dtype=torch.uint8, device="cuda:0")
        y = torch.empty(self.sizes.copied, dtype=torch.uint8, device="cuda:1")
        return self.sizes.copied / self.seconds(lambda: y.copy_(x))

    def rates(self) -> dict[str, float]:
        found = {"matmul": self.matmul(), "fp8": self.fp8(), "hbm": self.hbm(), "launch": self.launch()}
        found["attention"], found["attention_backward"] = self.attention(own=False)
        found["own_attention"], found["own_attention_backward"] = self.attention(own=True)
        found["encoder_attention"] = self.encoder_attention()
        found |= {"block": self.block(found), "token": self.token(), "decoded": self.decoded()}
        if self.device.type == "cuda" and torch.cuda.device_count() > 1:
            found["nvlink"] = self.nvlink()
        return {name: float(f"{value:.4g}") for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the rates to this file")
    args = parser.parse_args(arguments)
    rates = Calibration(args.device, GPU if args.device == "cuda" else CPU).rates()
    for name, value in rates.items():
        print(f"{name:24} {value:.4g}   assumed {getattr(ASSUMED, name):.4g}")
    if args.out:
        text = json.dumps({"rates": rates, "device": args.device, **machine(args.device)}, indent=1)
        write_text(args.out, text + "\n")


if __name__ == "__main__":
    main()
