"""Pictures of the page for the documentation: ``python -m tests.browser.pictures docs``; with ``all``, of other states.

The recording is made by the synthetic world and the answer is written here: they show the page, not a model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from afn_model.world.espeak import Espeak
from afn_model.world.sounds import sound
from tests.browser.stub_server import CHROMIUM, Scripted, Stub, serving

SIZES = {"": (1000, 960), "-narrow": (390, 844)}
SPOKEN = (
    (1.0, "Good morning. We are standing at the old stone bridge, which was built in seventeen eighty four."),
    (9.5, "It took eleven years, and three hundred people worked on it through every winter."),
    (31.0, "Until the railway came, everything that the valley sold went over this bridge."),
    (40.0, "And today it is closed to cars, and opened again for everybody who walks."),
)
SOUNDS = ((19.0, "dog", 1.6), (22.5, "rain", 8.0), (47.5, "clapping", 5.5))
QUESTION = "What happens in this recording, and when?"
REASONING = (
    "One man speaks, first at 0:01. There is barking near 0:19 and then a steady noise, rain, from 0:22 to 0:30. "
    "He goes on at 0:31. It ends in applause."
)
ANSWER = (
    "A man introduces an old stone bridge at 0:01 and says how long it took to build from 0:09 to 0:14.\n\n"
    "A dog barks at 0:19, and rain falls from 0:22 to 0:30. The man goes on at 0:31 with the railway, pauses at 0:37, "
    "and says at 0:40 that the bridge is closed to cars. People clap from 0:47 to 0:53; a car passes at 1:12."
)
OK, DOUBT, WRONG = "ok", "silent", "past_end"
TIMES = (
    *(("0:01", 1, None, OK), ("0:19", 19, None, OK), ("0:22 to 0:30", 22, 30, OK), ("0:31", 31, None, OK)),  # thoughts
    *(("0:01", 1, None, OK), ("0:09 to 0:14", 9, 14, OK), ("0:19", 19, None, OK), ("0:22 to 0:30", 22, 30, OK)),
    *(("0:31", 31, None, OK), ("0:37", 37, None, DOUBT), ("0:40", 40, None, OK), ("0:47 to 0:53", 47, 53, OK)),
    ("1:12", 72, None, WRONG),
)


def scene(seconds: float = 55.0) -> np.ndarray:
    """[n] samples: a man speaks, with sounds between."""
    rng = np.random.default_rng(5)
    pcm = 0.0005 * rng.standard_normal(round(seconds * 16_000)).astype(np.float32)

    def add(start: float, wave: np.ndarray, gain: float) -> None:
        at = round(start * 16_000)
        wave = wave[: len(pcm) - at]
        pcm[at : at + len(wave)] += gain * wave

    with Espeak() as voice:
        for start, text in SPOKEN:
            add(start, voice.say(text, voice="en-us").numpy(), 0.5)
    for start, name, length in SOUNDS:
        add(start, sound(name, rng, round(length * 16_000)), 0.12 if name == "rain" else 0.4)
    return pcm


def show(page: Page, url: str, recording: Path) -> None:
    """Asks and clicks a time."""
    page.goto(url)
    page.set_input_files("#files", recording)
    page.wait_for_selector("#recordings [aria-current=true]")
    page.check("#mel")
    page.fill("#question", QUESTION)
    page.click("#send")
    page.wait_for_selector(".foot button")
    page.click(".answer a:nth-of-type(4)")
    page.wait_for_timeout(1500)
    page.click("#play")
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)


def picture(page: Page, file: Path) -> None:
    """Of what is seen, in 255 colours."""
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=file)
    with Image.open(file) as full:
        small = full.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


def main(folder: Path, everything: bool) -> None:
    recording = folder / "bridge.wav"
    stub = Stub(script=Scripted(ANSWER, REASONING, TIMES))
    stub.settings = type(stub.settings)(name="audio-flamingo-next")
    soundfile.write(recording, scene(), 16_000)
    with serving(stub) as url, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, (width, height) in SIZES.items() if everything else [("", SIZES[""])]:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(url)
                kind = name + ("-dark" if scheme == "dark" else "")
                if everything:
                    picture(page, folder / f"page-empty{kind}.png")
                show(page, url, recording)
                picture(page, folder / f"page{kind}.png")
        browser.close()
    recording.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "all" in sys.argv)
