"""Layers of other people's models, as they are and patched: forward, with backward, peak memory, in turns.

    python -m bench.patch [--device cpu|cuda] [--out results.jsonl] [--rounds 5]

On a GPU the layers have their full size and bfloat16, Liger joins where it is installed, and memory is what PyTorch
counts. On a CPU they are small, in float32; each op is also tried by itself, which is where the reasons in
``afn_kernels/patch/table.py`` come from, and memory is the growth of a forked process. Every figure is of forward and
backward of one layer, its norms and the model's last norm; "loss" adds a head and labels on every fourth token.
"""

import copy
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_kernels.patch.table import LEFT_ALONE
from afn_model.host import version
from bench.measure import main, milliseconds

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


@dataclass
class PatchCase:
    """A model of one layer, and a call of it that ends in a scalar."""

    model: nn.Module
    call: Callable[[nn.Module], Tensor]


def decoder(device: str, *, classes: int = 64, padded: bool = False, loss: bool = False) -> PatchCase:
    """A Qwen2 layer of AF-Next (7B) at 4,096 tokens in two rows; an eighth of its width and 512 tokens on a CPU."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width, ffn, heads, kv_heads = (3584, 18944, 28, 4) if device == "cuda" else (448, 2368, 7, 1)
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=1,
        vocab_size=classes,
        use_cache=False,
    )
    rows, length = 2, 2048 if device == "cuda" else 256
    hidden = torch.randn(rows, length, config.hidden_size, device=device, dtype=DTYPES[device])
    mask = torch.ones(rows, length, dtype=torch.long, device=device)
    if padded:
        mask[1, length // 4 :] = 0
    labels = torch.randint(classes, (rows, length), device=device)
    labels[:, torch.arange(length) % 4 != 0] = -100

    def call(model):
        if loss:
            return model(inputs_embeds=hidden, labels=labels).loss
        return model.model(inputs_embeds=hidden, attention_mask=mask).last_hidden_state.float().square().mean()

    return PatchCase(ready(Qwen2ForCausalLM(config), device), call)


def whisper(device: str) -> PatchCase:
    """An encoder layer of Whisper-large-v3 on windows of 30 seconds: 1,280 wide; a quarter of that on a CPU."""
    from transformers import WhisperConfig, WhisperModel

    scale = 1 if device == "cuda" else 4
    config = WhisperConfig(
        num_mel_bins=128,
        d_model=1280 // scale,
        encoder_layers=1,
        encoder_attention_heads=20 // scale,
        encoder_ffn_dim=5120 // scale,
        decoder_layers=1,
        decoder_attention_heads=20 // scale,
    )
    mel = windows(device)
    model = ready(WhisperModel(config).encoder, device)
    return PatchCase(model, lambda model: model(mel).last_hidden_state.float().square().mean())


def af_next_ears(device: str) -> PatchCase:
    """An encoder layer of AF-Next with what follows it: pooling, time embedding, projector."""
    from transformers import MusicFlamingoConfig, MusicFlamingoModel

    scale = 1 if device == "cuda" else 4
    audio = {
        "model_type": "audioflamingo3_encoder",
        "hidden_size": 1280 // scale,
        "num_hidden_layers": 1,
        "num_attention_heads": 20 // scale,
        "intermediate_size": 5120 // scale,
    }
    text = {"model_type": "qwen2", "vocab_size": 8, "hidden_size": 3584 // scale, "num_hidden_layers": 0}
    text |= {"num_attention_heads": 28 // scale, "num_key_value_heads": 1}
    rope = {"rope_type": "default", "rope_theta": 1200.0, "partial_rotary_factor": 0.2}
    ids = {"audio_token_id": 5, "audio_bos_token_id": 6, "audio_eos_token_id": 7}
    model = MusicFlamingoModel(MusicFlamingoConfig(audio_config=audio, text_config=text, rope_parameters=rope, **ids))
    mel = windows(device)
    mask = torch.ones(len(mel), 3000, dtype=torch.long, device=device)
    tokens = torch.tensor([[6, *[5] * 750 * len(mel), 7]], device=device)  # one audio of these windows

    def call(model):
        return model.get_audio_features(mel, mask, tokens, return_dict=True).pooler_output.float().square().mean()

    frequencies = {name: buffer.clone() for name, buffer in model.pos_emb.named_buffers()}
    ready(model, device)
    for name, buffer in frequencies.items():  # float32, as from_pretrained leaves them
        setattr(model.pos_emb, name, buffer.to(device))
    return PatchCase(model, call)


def windows(device: str) -> Tensor:
    return torch.randn(4 if device == "cuda" else 1, 128, 3000, device=device, dtype=DTYPES[device])


def ready(model: nn.Module, device: str) -> nn.Module:
    model.set_attn_implementation("sdpa")
    return model.to(device, DTYPES[device]).train()


def workloads(device: str) -> dict[str, Callable[[], PatchCase]]:
    classes = 151_672 if device == "cuda" else 16_384
    return {
        "AF-Next decoder layer": lambda: decoder(device),
        "AF-Next decoder layer, padded": lambda: decoder(device, padded=True),
        "AF-Next decoder layer and loss": lambda: decoder(device, classes=classes, loss=True),
        "AF-Next encoder layer and adaptor": lambda: af_next_ears(device),
        "Whisper-large-v3 encoder layer": lambda: whisper(device),
    }


def variants(work: PatchCase, device: str) -> dict[str, nn.Module]:
    """The model as it is, as ``patch`` leaves it, on a CPU with one op at a time, and with Liger's kernels."""
    found = {"original": work.model, "patched": copy.deepcopy(work.model)}
    ak.patch(found["patched"])
    if device == "cpu":
        with mock.patch.dict(LEFT_ALONE, cpu={}):
            found["every op"] = copy.deepcopy(work.model)
            for op in sorted({entry.op for entry in ak.patch(found["every op"]).replaced}):
                found[op] = copy.deepcopy(work.model)
                ak.patch(found[op], only=[op])
    elif version("liger-kernel") and hasattr(work.model, "lm_head"):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        found["liger"] = copy.deepcopy(work.model)
        apply_liger_kernel_to_qwen2(rope=False, model=found["liger"])
    return found


def step(work: PatchCase, model: nn.Module, backward: bool) -> Callable[[], None]:
    def forward():
        with torch.no_grad():
            work.call(model)

    def both():
        work.call(model).backward()
        model.zero_grad()

    return both if backward else forward


def peak_megabytes(call: Callable[[], None], device: str) -> float:
    """What a call needs at its worst, beyond what is there before it."""
    if device == "cuda":
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(_growth(call)))
    child.start()
    child.join()
    return round(queue.get() / 2**10, 1)


def _growth(call: Callable[[], None]) -> int:
    """KiB by which this process was larger during a call than before it."""
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def measure(rounds: int, device: str) -> dict:
    """Milliseconds and megabytes of every workload, variant and direction."""
    record: dict = {"benchmark": "patch", "dtype": str(DTYPES[device]), "transformers": version("transformers")}
    times: dict = {}
    memory: dict = {}
    torch.manual_seed(0)
    made = {name: make() for name, make in workloads(device).items()}  # Liger changes what is made after it
    for name, work in made.items():
        models = variants(work, device)
        for backward, what in ((False, "forward"), (True, "forward+backward")):
            found = milliseconds({key: step(work, model, backward) for key, model in models.items()}, rounds)
            times |= {f"{name}, {what}, {key}": value for key, value in found.items()}
        both = {key: step(work, model, True) for key, model in models.items()}
        memory |= {f"{name}, {key}": peak_megabytes(call, device) for key, call in both.items()}
        for key in models:
            ahead, all_of_it = (times[f"{name}, {what}, {key}"] for what in ("forward", "forward+backward"))
            print(f"{name:<34}{key:<22}{ahead:10.2f} ms{all_of_it:10.2f} ms{memory[f'{name}, {key}']:10.1f} MB")
    return {**record, "milliseconds": times, "peak_megabytes": memory}


if __name__ == "__main__":
    main(__doc__, measure, rounds=5, devices=("cpu", "cuda"))
