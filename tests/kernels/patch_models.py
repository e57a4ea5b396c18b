"""Tiny transformers models with random weights, one of each supported architecture, and inputs for them."""

import contextlib
import functools
import importlib
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

from tests.kernels.patch_configs import FRAMES, MEL, MORE, SOUND, audio, config, sounds, waveform

TEXT = {
    "vocab_size": 80,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODER = {
    "num_mel_bins": MEL,
    "max_source_positions": FRAMES // 2,
    "d_model": 64,
    "hidden_size": 64,
    "encoder_layers": 2,
    "num_hidden_layers": 2,
    "encoder_attention_heads": 2,
    "num_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "intermediate_size": 96,
}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "whisper": "WhisperForConditionalGeneration",
    "voxtral": "VoxtralForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "musicflamingo": "MusicFlamingoForConditionalGeneration",
}
ARCHITECTURES = tuple(CLASSES)
DECODERS = ARCHITECTURES[:4]
TEXT_ONLY = (*DECODERS, "gemma2", "gemma3", "phi3", "granite", "smollm3")


def build(name: str, *, seed: int = 0, layers: int = 2, **text) -> nn.Module:
    """A model in float32, in training mode without dropout, with weights large enough to make every part matter."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(seed)
    cls = getattr(transformers, {**CLASSES, **MORE}[name])
    make = config if name in MORE else _config
    model = cls(make(cls.config_class, name, {**TEXT, "num_hidden_layers": layers, **text}))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            del module[layers:]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.train()
    if name == "qwen3_omni_moe":
        model.set_experts_implementation("eager")  # grouped products have no float64
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()  # in training it changes its buffers
    return model


def _config(config, name: str, text: dict):
    if name in DECODERS:
        extra = {"sliding_window": None} if name == "mistral" else {}
        return config(**{**text, **extra, "head_dim": 16})
    if name == "whisper":
        heads = {"decoder_attention_heads": 2, "decoder_layers": 2, "decoder_ffn_dim": 96, "max_target_positions": 64}
        ids = {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}
        return config(**{**ENCODER, **heads, **ids, **{k: text[k] for k in ("vocab_size", "pad_token_id")}, **_EOS})
    if name == "voxtral":
        audio = {**ENCODER, "intermediate_size": 256, "encoder_ffn_dim": 256}
        return config(audio_config=audio, text_config={**text, "head_dim": 16}, audio_token_id=SOUND)
    kind = {"qwen2_audio": "qwen2_audio_encoder"}.get(name, "audioflamingo3_encoder")
    audio, text = {"model_type": kind, **ENCODER}, {"model_type": "qwen2", **text}
    if name == "qwen2_audio":
        return config(audio_config=audio, text_config=text, audio_token_index=SOUND, audio_token_id=SOUND)
    if name == "audioflamingo3":
        return config(audio_config=audio, text_config=text, audio_token_id=SOUND)
    rope = {"rope_type": "default", "rope_theta": 1200.0, "partial_rotary_factor": 0.2}
    ids = {"audio_token_id": SOUND, "audio_bos_token_id": 71, "audio_eos_token_id": 72}
    return config(audio_config=audio, text_config=text, rope_parameters=rope, **ids)


_EOS = {"bos_token_id": 1, "eos_token_id": 2}


def precise(model: nn.Module) -> nn.Module:
    """In float64 throughout: transformers' RMSNorm computes in float32 whatever the weights are."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    def of_gemma(self, x):
        return (1 + self.weight) * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = forward.__get__(module)
        elif type(module).__name__.startswith("Gemma") and type(module).__name__.endswith("RMSNorm"):
            module.forward = of_gemma.__get__(module)
    return model.double()


def cache_name() -> str:
    """What this transformers calls the KV cache."""
    outputs = importlib.import_module("transformers.modeling_outputs")
    return "cache" if hasattr(outputs.CausalLMOutputWithPast, "cache") else "past_key_values"


@contextlib.contextmanager
def widest():
    """transformers' softmax in float32 becomes one of what it is given."""

    def softmax(x, dim=-1, dtype=None, **_):
        return torch.softmax(x, dim)

    with mock.patch.object(torch.nn.functional, "softmax", softmax):
        yield


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As from_pretrained(dtype=...) would make it: the buffers of rotary embeddings keep float32."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype)
    for name, buffer in kept.items():
        if dtype.itemsize < 4 and "freq" in name:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer)
    return model


@dataclass
class ModelInputs:
    """What a model is called with, and how long each row of it is."""

    inputs: dict[str, Tensor]
    labels: Tensor
    prompt: dict[str, Tensor]

    def call(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.inputs.items()}

    def to_generate(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.prompt.items()}


def batch(name: str, *, seed: int = 0, side: str = "right", lengths: tuple[int, ...] = (25, 18)) -> ModelInputs:
    """Rows of different lengths, padded on one side; audio where the model has ears; labels on a part."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randint, generator=generator)
    longest = max(lengths)
    inputs, windows = {}, [FRAMES - 7, FRAMES]
    if name in ("moonshine", "wav2vec2"):
        return _of_a_waveform(name, generator)
    if name in MORE and name not in TEXT_ONLY:
        inputs = audio(name, generator)
    elif name not in TEXT_ONLY:
        inputs["input_features"] = torch.randn(len(lengths), MEL, FRAMES, generator=generator)
    labels = draw(3, 60, (len(lengths), longest))
    if name == "whisper":
        labels[1, 9:] = -100
        start = {"decoder_input_ids": torch.tensor([[1, 5, 6]] * len(lengths))}
        return ModelInputs({**inputs}, labels, {**inputs, **start})
    ids, mask = torch.zeros(2, len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        begin = 0 if side == "right" else longest - length
        ids[row, begin : begin + length] = draw(3, 60, (length,))
        mask[row, begin : begin + length] = 1
        if name in MORE and name not in TEXT_ONLY:
            heard = sounds(name, row)
            ids[row, begin + 1] = 71
            ids[row, begin + 2 : begin + 2 + heard] = SOUND
            ids[row, begin + 2 + heard] = 72
        elif name not in TEXT_ONLY:
            mel = FRAMES if name == "voxtral" else windows[row]
            heard = ((mel - 1) // 2 + 1 - 2) // 2 + 1
            heard = 6 if name == "voxtral" else heard  # it stacks four frames: 24 · 64 / 256
            ids[row, begin + 1 : begin + 1 + heard] = SOUND
    labels[mask == 0] = -100
    labels[ids == SOUND] = -100
    if name in ("audioflamingo3", "musicflamingo", "qwen2_audio"):
        key = "feature_attention_mask" if name == "qwen2_audio" else "input_features_mask"
        inputs[key] = (torch.arange(FRAMES) < torch.tensor(windows)[:, None]).long()
    prompt = {**inputs, "input_ids": ids, "attention_mask": mask}
    return ModelInputs(prompt, labels, prompt)


def _of_a_waveform(name: str, generator: torch.Generator) -> ModelInputs:
    inputs = waveform(name, generator)
    labels = torch.randint(3, 60, (2, 12 if name == "moonshine" else 5), generator=generator)
    labels[1, -2:] = -100
    prompt = {**inputs, "decoder_input_ids": torch.tensor([[1, 5, 6]] * 2)} if name == "moonshine" else inputs
    return ModelInputs(inputs, labels, prompt)
