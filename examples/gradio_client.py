"""A gradio page that asks a server started by ``afn serve``: for a Space of one's own.

    python examples/gradio_client.py

``AFN_URL`` is the server's address, ``AFN_API_KEY`` its key. Needs the packages ``gradio`` and ``openai``.
"""

import base64
import os

from openai import OpenAI

URL = os.environ.get("AFN_URL", "http://127.0.0.1:8000/v1")


def ask(path: str, question: str):
    """The answer as it grows."""
    client = OpenAI(base_url=URL, api_key=os.environ.get("AFN_API_KEY", "none"))
    with open(path, "rb") as file:
        audio = {"data": base64.b64encode(file.read()).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": question}]
    model, said = client.models.list().data[0].id, ""
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": parts}], stream=True
    ):
        said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        yield said


def main():
    import gradio  # pyright: ignore[reportMissingImports]

    inputs = [gradio.Audio(type="filepath", label="Recording"), gradio.Textbox("What is said?", label="Question")]
    return gradio.Interface(ask, inputs, gradio.Textbox(label="Answer"), title="Audio Flamingo Next")


if __name__ == "__main__":
    main().launch()
