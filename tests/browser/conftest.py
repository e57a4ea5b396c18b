"""A browser, a server for each test, and what all tests ask of the page: no errors, nothing that policies refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile

from tests.browser.stub_server import CHROMIUM, Stub, serving
from tests.tiny import noise

SOUGHT = """() => {
  window.sought = [];
  const audio = document.querySelector("#audio");
  audio.addEventListener("seeking", () => sought.push(audio.currentTime));
}"""
TONE = 440.0  # Hz, what the microphone hears


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not os.environ.get("AFN_BROWSER"):
        pytest.skip("tests in a browser are asked for: make test-browser, or AFN_BROWSER=1")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install afn-kernels[browser]")
    if not CHROMIUM:
        pytest.skip("there is no chromium on the path")
    heard = tmp_path_factory.mktemp("microphone") / "tone.wav"
    soundfile.write(heard, 0.5 * np.sin(2 * np.pi * TONE * np.arange(16_000 * 4) / 16_000), 16_000)
    args = [
        *("--no-sandbox", "--mute-audio", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
        f"--use-file-for-fake-audio-capture={heard}",
    ]
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=args)
        yield found
        found.close()


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
def server(browser, stub):
    with serving(stub) as address:
        yield address


@contextmanager
def opened(browser, server: str) -> Iterator:
    """The page, open; whatever it complains about fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 860}, color_scheme="light", accept_downloads=True)
    context.set_default_timeout(10_000)
    found = context.new_page()
    errors: list[str] = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    found.goto(server)
    found.evaluate(SOUGHT)
    yield found
    context.close()
    # The browser itself tells of answers such as 401, which tests ask for.
    assert not [error for error in errors if "Failed to load resource" not in error]


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as found:
        yield found


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Two files, of 8 and 5 seconds."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, seconds in (("talk", 8), ("street", 5)):
        soundfile.write(folder / f"{name}.wav", noise(seconds, seconds), 16_000)
    return [folder / "talk.wav", folder / "street.wav"]
