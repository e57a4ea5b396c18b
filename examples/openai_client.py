"""Questions about a recording with OpenAI's client, to a server that ``make serve-demo`` or ``afn serve`` has started.

    python examples/openai_client.py

Without a recording of yours it makes up two seconds of a tone. Needs the package ``openai``.
"""

import base64
import io
import math
import struct
import sys
import wave
from pathlib import Path

from openai import OpenAI


def tone(seconds: float = 2.0, hertz: float = 440.0) -> bytes:
    """A WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        samples = (round(8000 * math.sin(2 * math.pi * hertz * n / 16_000)) for n in range(round(seconds * 16_000)))
        out.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()


def main(url: str = "http://127.0.0.1:8000/v1", data: bytes | None = None, key: str = "none") -> str:
    client = OpenAI(base_url=url, api_key=key)
    model = client.models.list().data[0].id
    audio = {"data": base64.b64encode(data or tone()).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "What is to be heard, and when?"}]
    said = ""
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": parts}], max_completion_tokens=64, stream=True
    ):
        piece = chunk.choices[0].delta.content if chunk.choices else None
        said += piece or ""
        print(piece or "", end="", flush=True)
    print()
    return said


if __name__ == "__main__":
    main(data=Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else None)
