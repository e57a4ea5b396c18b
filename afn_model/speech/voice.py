"""A voice: codec and talker together, and their folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from afn_model.files import PARTIAL, model_folder, read_json, write_json
from afn_model.speech.codec import Codec
from afn_model.speech.config import MODEL_TYPE, VoiceConfig, voice_config, voice_json
from afn_model.speech.talker import Talker
from afn_model.weights.checkpoint import (
    DTYPE_NAMES,
    SkipInit,
    Stored,
    compare_headers,
    compare_names,
    keys_of,
    open_shard,
    publish,
    read_tensor,
    save_shards,
)

DEFAULT = "default_voice"


class AFVoice(nn.Module):
    """A codec, a talker where the configuration has one, and where one is set the codes of the voice that speaks
    when no other is asked for: ``default_voice`` [F, L] int64.

    ``AFVoice(config)`` has random weights; ``from_pretrained`` reads a folder.
    """

    default_voice: Tensor | None

    def __init__(self, config: VoiceConfig):
        super().__init__()
        self.config = config
        self.codec = Codec(config.codec)
        self.talker = None if config.talker is None else Talker(config.talker, config.codec)
        self.register_buffer(DEFAULT, None)

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> AFVoice:
        """Reads a folder that ``save_pretrained`` wrote.

        Args:
            folder: with config.json and safetensors.
            dtype: of the weights; default the stored one.
            device: where they go.

        Raises:
            ValueError: one line: no such folder, no voice, a damaged shard, a missing, unexpected or mis-shaped tensor.
        """
        voice, stored = voice_on_meta(folder)
        tensors = {}
        for name, place in stored.items():
            tensor = read_tensor(open_shard(place.file), place.file, place.key)
            tensors[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        voice.load_state_dict(tensors, assign=True)
        return voice.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and safetensors, in the place of what the folder holds."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL) as temporary:
            staged = Path(temporary)
            save_shards(staged, self.state_dict())
            dtype = self.codec.head.linear.weight.dtype
            write_json(staged / "config.json", voice_json(self.config) | {"dtype": DTYPE_NAMES[dtype]})
            publish(staged, folder)


def is_voice(folder: str | Path) -> bool:
    """Whether a folder holds a voice."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_json(file).get("model_type") == MODEL_TYPE


def voice_on_meta(folder: str | Path) -> tuple[AFVoice, dict[str, Stored]]:
    """A folder's voice without its weights, on the meta device, and where each of them lies.

    Raises:
        ValueError: as ``AFVoice.from_pretrained``, but for what only reading a tensor shows.
    """
    folder = model_folder(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no config.json")
    try:
        config = voice_config(read_json(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    with torch.device("meta"), SkipInit():
        voice = AFVoice(config)
    stored = keys_of(folder)
    if DEFAULT in stored:
        found, levels = stored[DEFAULT], config.codec.levels
        if found.dtype != "I64" or len(found.shape) != 2 or found.shape[1] != levels:
            raise ValueError(
                f"{found.file}: {DEFAULT} is {found.dtype} {found.shape}, expected I64 of (frames, {levels})"
            )
        voice.default_voice = torch.empty(found.shape, dtype=torch.int64, device="meta")
    wanted = {name: tuple(tensor.shape) for name, tensor in voice.state_dict().items()}
    compare_names(folder, set(wanted), set(stored))
    compare_headers({name: shape for name, shape in wanted.items() if name != DEFAULT}, stored)
    return voice, {name: stored[name] for name in wanted}
