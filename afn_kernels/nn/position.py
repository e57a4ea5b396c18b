"""Embeddings of position and of time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afn_kernels._library import plain
from afn_kernels.rotary import rotary
from afn_kernels.rote import rote


def frequencies(rotary_dim: int, theta: float, scaling: dict | None = None) -> Tensor:
    """[R / 2] float32 on the CPU: theta^(−2d / R), scaled as ``RotaryEmbedding`` says."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
    inv_freq = 1.0 / theta**exponents
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type", "default"))
    if scaling is None or kind == "default":
        return inv_freq
    if kind == "linear":
        return inv_freq / scaling["factor"]
    if kind == "llama3":
        slow, fast = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * inv_freq / (2 * math.pi)  # in the original context
        kept = ((turns - slow) / (fast - slow)).clamp(0.0, 1.0)
        return inv_freq * (kept + (1.0 - kept) / scaling["factor"])
    known = "default, linear and llama3"
    raise ValueError(f"rope_type {kind!r} is none of {known}: take that model's cos and sin, and ak.apply_rotary")


class RotaryEmbedding(nn.Module):
    """Rotates q and k by the angles position · theta^(−2d / R): a module over ``rotary``.

    It has no parameters and no buffers, so a state dict has no key of it, and ``model.bfloat16()`` or ``half()`` leaves
    its frequencies as they are: float32, on the device of q.

    Args:
        head_dim: D.
        theta: the base, ``rope_theta``.
        rotary_dim: R, the leading features that turn; default D.
        scaling: ``rope_type`` "linear" divides frequencies by ``factor``; "llama3" those that turn less than
            ``low_freq_factor`` times within ``original_max_position_embeddings``, blending up to ``high_freq_factor``
            turns. As transformers' configurations have it (``rope_scaling`` or ``rope_parameters``).
        interleaved, sections, sections_interleaved, impl: as ``rotary`` takes them.

    Returns:
        Called with q [T, Hq, D], k [T, Hk, D] and positions [T] float32: q and k rotated. With sections positions are
        [axes, T], or [T] where they are the same on every axis.
        Called with q [B, T, Hq, D], k [B, T, Hk, D] and positions [T], [B, T] or [axes, B, T]: the same of a batch.

    Raises:
        ValueError: what ``rotary`` raises; another ``rope_type``.

    Source: Su et al., 2021, arXiv:2104.09864; Chen et al., 2023, arXiv:2306.15595; Llama 3: arXiv:2407.21783.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float = 10_000.0,
        rotary_dim: int | None = None,
        scaling: dict | None = None,
        *,
        interleaved: bool = False,
        sections: Sequence[int] | None = None,
        sections_interleaved: bool = False,
        impl: str = "auto",
    ):
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self.rotary_dim = head_dim if rotary_dim is None else rotary_dim
        self.inv_freq = frequencies(self.rotary_dim, theta, scaling)
        self.options = {"rotary_dim": rotary_dim, "interleaved": interleaved, "impl": impl}
        self.options |= {"sections": sections, "sections_interleaved": sections_interleaved}

    @classmethod
    def from_config(cls, config, *, interleaved: bool = False, impl: str = "auto") -> RotaryEmbedding:
        """Of a transformers configuration: its head size, theta, partial factor, scaling and sections.

        Raises:
            ValueError: a configuration without one theta (layers of several kinds); another ``rope_type``.
        """
        scaling = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
        theta = scaling.get("rope_theta", getattr(config, "rope_theta", None))
        if theta is None:
            raise ValueError(
                f"{type(config).__name__} has no rope_theta of all layers: use RotaryEmbedding(head_dim, …)"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        part = scaling.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
        width = int(head_dim * part)
        if "mrope_section" in scaling and scaling.get("rope_type", scaling.get("type")) == "mrope":
            scaling["rope_type"] = "default"
        sections = scaling.get("mrope_section")
        always = str(getattr(config, "model_type", "")).startswith(("qwen3_vl", "qwen3_omni"))  # says so or not
        order = {"sections": sections, "sections_interleaved": bool(scaling.get("mrope_interleaved", always))}
        order = order if sections else {}
        rotary_dim = None if width == head_dim else width
        return cls(head_dim, theta, rotary_dim, scaling or None, interleaved=interleaved, impl=impl, **order)

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        sections = self.options["sections"]
        if q.dim() != 4:
            if sections and positions.dim() == 1:
                positions = positions.expand(len(sections), -1)
            return rotary(q, k, positions, self._on(q.device), **self.options)
        batch = q.shape[:2]
        if positions.dim() == 1:
            positions = positions.expand(batch)
        if sections and positions.dim() == 2:
            positions = positions.expand(len(sections), *batch)
        rows = positions.reshape(*positions.shape[:-2], -1)
        found = rotary(q.flatten(0, 1), k.flatten(0, 1), rows, self._on(q.device), **self.options)
        return found[0].unflatten(0, batch), found[1].unflatten(0, batch)

    def _on(self, device: torch.device) -> Tensor:
        """The frequencies on a device, where they stay: what is not an ordinary tensor is not kept."""
        if self.inv_freq.device == device:
            return self.inv_freq
        if torch.compiler.is_compiling():
            return self.inv_freq.to(device)
        with torch.inference_mode(False):
            moved = self.inv_freq.to(device)
        if device.type != "meta" and plain(moved):
            self.inv_freq = moved
        return moved

    def extra_repr(self) -> str:
        return f"{self.head_dim}, theta={self.theta}, rotary_dim={self.rotary_dim}, scaling={self.scaling}"


class RotaryTimeEmbedding(nn.Module):
    """Rotates features by a phase that grows with time, φ = −2π t · position / period · f_k: a module over ``rote``.

    It has no parameters and no buffers.

    Args:
        options: ``rotary_dim``, ``theta``, ``period``, ``window_factor``, ``frame_factor``, ``seconds_per_frame``,
            ``frames_per_window``, ``phase_dtype`` and ``impl``, as ``rote`` takes them.

    Returns:
        Called with x [..., D] and integers ``window`` and ``frame`` [...]: x rotated, same shape and dtype.

    Raises:
        ValueError: what ``rote`` raises; an option that it does not have.
    """

    def __init__(self, **options):
        super().__init__()
        known = set(rote.__kwdefaults__)
        if not options.keys() <= known:
            raise ValueError(f"rote has no option {sorted(options.keys() - known)}; it has {sorted(known)}")
        self.options = options

    def forward(self, x: Tensor, window: Tensor, frame: Tensor) -> Tensor:
        if window.shape != x.shape[:-1] or frame.shape != x.shape[:-1]:
            shapes = f"window {list(window.shape)}, frame {list(frame.shape)}"
            raise ValueError(f"{shapes}; expected one of each for every row of x {list(x.shape)}")
        return rote(x.reshape(-1, x.shape[-1]), window.flatten(), frame.flatten(), **self.options).view(x.shape)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
