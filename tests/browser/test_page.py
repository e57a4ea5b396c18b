"""The page in a real browser: what a person does with it."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from afn_model.serve.recording import Recording
from afn_model.serve.settings import Settings
from tests.browser.conftest import TONE
from tests.browser.stub_server import Scripted, Stub
from tests.tiny import noise

pytestmark = pytest.mark.slow

REASONING = "I hear a dog at 0:02."
ANSWER = "🐕 <b>A dog</b> barks at 0:02, rests from 0:03 to 0:05\nand howls at 9:59."
TIMES = (("0:02", 2.0, None, "ok"), ("0:02", 2.0, None, "ok"), ("0:03 to 0:05", 3.0, 5.0, "silent"),
         ("9:59", 599.0, None, "past_end"))  # fmt: skip


def until(check, seconds: float = 10.0) -> None:
    """Waits for what cannot be waited for in the page, whose policy allows no code from texts."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.02)


def choose(page, files) -> None:
    page.set_input_files("#files", files)
    shown = page.locator("#recordings [aria-current=true]")
    shown.wait_for()
    page.locator("#wave [part=canvases] canvas").first.wait_for(state="attached")


def ask(page, question: str = "What happens?") -> None:
    before = page.locator(".turn").count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.locator(f".turn:nth-child({before + 1})[aria-busy=false]").wait_for()


def now(page) -> float:
    return page.evaluate("document.querySelector('#audio').currentTime")


def playing(page) -> bool:
    return not page.evaluate("document.querySelector('#audio').paused")


def plays_from(page, seconds: float) -> None:
    """Waits until it does, after it was there."""
    until(lambda: page.evaluate("sought.at(-1)") == seconds and playing(page) and now(page) > seconds)


def test_files_are_listed_shown_and_removed(page, recordings):
    choose(page, recordings)
    until(lambda: page.locator("#recordings li .quiet").all_text_contents() == ["0:08", "0:05"])
    assert page.get_attribute("#question", "placeholder") == "Ask about the 2 recordings"
    page.click("#recordings li:first-child .name")
    until(lambda: page.text_content("#length") == "0:08")
    assert page.evaluate("document.activeElement.textContent") == "talk.wav0:08"
    page.click("#recordings li:first-child [aria-label='Remove talk.wav']")
    until(lambda: page.text_content("#length") == "0:05")
    page.click("[aria-label='Remove street.wav']")
    assert page.is_hidden("#player")
    assert page.is_visible("#drop .lead")


def test_files_are_dropped(page, recordings):
    data = base64.b64encode(recordings[0].read_bytes()).decode()
    dropped = page.evaluate_handle(
        """(data) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], "dropped.wav", { type: "audio/wav" }));
          return transfer;
        }""",
        data,
    )
    page.dispatch_event("main", "dragenter", {"dataTransfer": dropped})
    assert "over" in page.get_attribute("#drop", "class")
    page.dispatch_event("main", "drop", {"dataTransfer": dropped})
    page.locator("#recordings [aria-current=true]", has_text="dropped.wav").wait_for()
    assert "over" not in page.get_attribute("#drop", "class")


def test_what_the_microphone_hears_is_recorded(page, stub):
    page.click("#record")
    page.locator("#recorder").wait_for()
    until(lambda: int(page.get_attribute("#level", "aria-valuenow")) > 60)  # a tone at half of full scale
    until(lambda: page.text_content("#recorded") == "0:01")
    page.click("#record-stop")
    page.locator("#recordings [aria-current=true]").wait_for()
    assert page.is_hidden("#recorder")
    (kept,) = stub.uploads._kept.values()
    heard = getattr(kept, "recording", kept).pcm.numpy()
    assert 0.9 < len(heard) / 16_000 < 5
    spectrum = np.abs(np.fft.rfft(heard[-8_000:]))
    assert abs(spectrum.argmax() * 2 - TONE) <= 4  # bins of 2 Hz
    page.click("#record")
    page.locator("#recorder").wait_for()
    page.click("#record-discard")
    page.locator("#recorder").wait_for(state="hidden")
    assert page.locator("#recordings li").count() == 1


def test_questions_are_asked_and_answers_are_text(page, stub, recordings):
    stub.script = Scripted(ANSWER, REASONING, TIMES)
    choose(page, recordings)
    until(lambda: page.locator("#recordings [aria-current]").count() == 2)
    page.click(".options summary")
    page.fill("#system", "Be brief.")
    page.check("#think")
    ask(page)
    system, user, begun = stub.asked[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    urls = [part["audio_url"]["url"] for part in user["content"][:2]]
    assert urls == [f"afn://sha256/{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in recordings]
    assert user["content"][2] == {"type": "text", "text": "What happens?"}
    assert begun == {"role": "assistant", "content": "<think>\n"}
    said = {name: stub.asked[0][name] for name in ("model", "temperature", "stream")}
    assert said == {"model": "tiny", "temperature": 0, "stream": True}
    assert page.text_content(".answer") == ANSWER
    assert page.locator(".answer b").count() == 0
    assert page.text_content(".reasoning") == REASONING
    assert page.is_hidden(".reasoning")
    page.click(".thinking summary")
    assert page.is_visible(".reasoning")
    page.uncheck("#think")
    ask(page, "And then?")
    again = stub.asked[1]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"] == ANSWER
    assert again[3]["content"] == [{"type": "text", "text": "And then?"}]


def test_times_lead_to_their_moment(page, stub, recordings):
    stub.script = Scripted(ANSWER, REASONING, TIMES)
    choose(page, recordings[0])
    ask(page)
    links = page.locator(".answer a")
    assert links.all_text_contents() == ["0:02", "0:03 to 0:05", "9:59"]
    kinds = [link.get_attribute("class").split()[1] for link in links.all()]
    assert kinds == ["fine", "doubt", "wrong"]
    assert "nothing is heard there" in page.text_content(".checks")
    regions = page.locator("#wave [part~=doubt]")
    assert regions.count() == 1
    links.nth(1).hover()
    assert "lit" in regions.get_attribute("part")
    links.nth(1).click()
    plays_from(page, 3)
    until(lambda: links.nth(1).get_attribute("aria-current") == "time")
    page.click("#play")
    page.mouse.move(1, 1)
    page.locator("#wave [part~=marker][part~=fine]").dispatch_event("mouseenter")
    until(lambda: "lit" in links.nth(0).get_attribute("class"))
    regions.click(position={"x": 20, "y": 20})
    plays_from(page, 3)
    box = page.locator("#wave").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.875, box["y"] + 20)  # the waveform itself, at 7 s
    until(lambda: abs(page.evaluate("sought.at(-1)") - 7) < 0.1)


def test_times_are_of_the_recording_that_the_server_names(page, stub, recordings):
    stub.script = Scripted("First 0:03, then 0:02.", times=(("0:03", 3, None, "ok", 0), ("0:02", 2, None, "ok", 1)))
    choose(page, recordings)
    until(lambda: page.text_content("#recordings [aria-current=true]") in ("talk.wav0:08", "street.wav0:05"))
    until(lambda: page.locator("#recordings [aria-current]").count() == 2)
    ask(page)
    markers = page.locator("#wave [part~=marker]")
    assert markers.count() == 1
    for link, name, at in ((0, "talk", 3), (1, "street", 2)):
        page.locator(".answer a").nth(link).click()
        page.locator("#recordings [aria-current=true]", has_text=name).wait_for()
        plays_from(page, at)
        until(lambda: markers.count() == 1)


def test_an_answer_is_stopped(page, stub, recordings):
    stub.script = Scripted("One two three", endless=True)
    choose(page, recordings[0])
    page.fill("#question", "Count.")
    page.click("#send")
    page.locator(".answer", has_text="three").wait_for()
    assert page.get_attribute(".turn", "aria-busy") == "true"
    page.click("#stop")
    page.locator(".state", has_text="Stopped.").wait_for()
    assert stub.left.wait(10)
    assert page.is_visible("#send")
    stub.script = Scripted(endless=True, answer="")
    ids = len(stub.asked)
    page.fill("#question", "Go on.")
    page.click("#send")
    until(lambda: len(stub.asked) > ids)
    page.keyboard.press("Escape")
    page.locator(".state", has_text="Stopped.").nth(1).wait_for()
    stub.script = Scripted("Four.")
    ask(page, "Next?")
    said = [message["content"] if message["role"] == "assistant" else message["content"][-1]["text"]
            for message in stub.asked[-1]["messages"]]  # fmt: skip
    assert said == ["Count.", "One two three", "Next?"]  # what had no answer is as if it had not been asked


def test_answers_are_saved(page, stub, recordings):
    stub.script = Scripted(
        "0:01 Good morning.\n0:03 - 0:04: Good night.", "", (("0:01", 1, None, "ok"), ("0:03 - 0:04", 3, 4, "ok"))
    )
    choose(page, recordings[0])
    ask(page)
    with page.expect_download() as saved:
        page.click("text=Save srt")
    assert saved.value.suggested_filename == "talk.srt"
    assert Path(saved.value.path()).read_text() == (
        "1\n00:00:01,000 --> 00:00:03,000\nGood morning.\n\n2\n00:00:03,000 --> 00:00:04,000\nGood night.\n"
    )
    with page.expect_download() as saved:
        page.click("text=Save json")
    (turn,) = json.loads(Path(saved.value.path()).read_text())["turns"]
    assert turn["question"] == "What happens?"
    assert turn["timestamps"] == stub.script.timestamps()
    assert [recording["name"] for recording in turn["recordings"]] == ["talk.wav"]


def test_keys(page, recordings):
    choose(page, recordings[0])
    page.evaluate("document.activeElement.blur()")
    for key, at in (("ArrowRight", 5.0), ("ArrowRight", 8.0), ("ArrowLeft", 3.0)):
        page.keyboard.press(key)
        until(lambda at=at: abs(now(page) - at) < 0.01)
    page.keyboard.press(" ")
    until(lambda: playing(page))
    page.keyboard.press(" ")
    until(lambda: not playing(page))
    page.keyboard.press("]")
    assert page.evaluate("document.querySelector('#audio').playbackRate") == 1.25
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert page.input_value("#speed") == "0.75"
    page.keyboard.press("?")
    page.locator("#help").wait_for()
    page.keyboard.press("Escape")
    page.locator("#help").wait_for(state="hidden")
    page.focus("#question")
    page.keyboard.type("a [b]? c")  # keys of the player are letters here
    assert page.input_value("#question") == "a [b]? c"
    assert not playing(page)


def test_a_spectrogram_is_shown_when_asked_for(page, tmp_path):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    soundfile.write(tmp_path / "long.wav", noise(44), 16_000)
    choose(page, tmp_path / "long.wav")
    assert not [url for url in asked if "/mel/" in url]
    page.check("#mel")
    pictures = page.locator("#wave [part=mel] img")
    until(lambda: pictures.evaluate_all("all => all.map((one) => one.naturalWidth)") == [600, 280])
    assert pictures.first.evaluate("image => image.naturalHeight") == 128
    page.fill("#zoom", "100")
    until(lambda: pictures.first.evaluate("image => image.naturalWidth") == 3000)
    assert [url.rpartition("/")[2] for url in asked if "/mel/" in url] == [
        "0.png?columns=600", "1.png?columns=600", "0.png?columns=3000",
    ]  # fmt: skip
    page.uncheck("#mel")
    assert pictures.count() == 0


def test_half_an_hour(page, stub, recordings):
    """Nothing is decoded in the browser, and only parts of the file are fetched."""
    page.evaluate("void (AudioContext.prototype.decodeAudioData = () => { throw new Error('decoded'); })")
    pcm = torch.randint(-9000, 9000, (1800 * 16_000,), dtype=torch.int16)
    stub.instead = Recording("f" * 64, pcm)
    choose(page, recordings[0])
    until(lambda: page.text_content("#length") == "30:00")
    page.check("#mel")
    page.fill("#zoom", "100")
    page.fill("#seek", "1500")
    until(lambda: abs(now(page) - 1500) < 0.5)
    until(lambda: page.text_content("#now") == "25:00")
    assert page.locator("#wave [part=canvases] canvas").count() < 30  # those in sight
    until(lambda: any(int(asked.split("-")[0]) > 40_000_000 for asked in stub.ranges))


@pytest.mark.parametrize("stub", [Stub(Settings(name="tiny", keys=("right",)))])
def test_a_key_is_asked_for_and_kept_for_the_tab(page, recordings, stub):
    page.locator("#key-dialog").wait_for()
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.locator("#key-message", has_text="does not take this API key").wait_for()  # in the dialog, not behind it
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    page.locator("#model", has_text="tiny").wait_for()
    assert page.is_hidden("#message")
    choose(page, recordings[0])
    assert page.get_attribute("#audio", "src").startswith("blob:")
    page.click("#play")
    until(lambda: now(page) > 0)
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_errors_are_sentences(page, stub, tmp_path, recordings):
    page.fill("#question", "What?")
    page.click("#send")
    page.locator("#message", has_text="There is no recording yet").wait_for()
    (tmp_path / "notes.wav").write_text("no audio")
    page.set_input_files("#files", tmp_path / "notes.wav")
    page.locator("#message", has_text="notes.wav: This is no recording that can be read.").wait_for()
    assert page.locator("#recordings li").count() == 0
    choose(page, recordings[0])
    assert page.is_hidden("#message")
    stub.script = Scripted("", error="the engine has died")
    ask(page)
    assert page.text_content(".state") == "The engine has died."
    assert page.input_value("#question") == "What happens?"  # to try again
    stub.script = Scripted("Fine.")
    page.click("#send")
    page.locator(".answer", has_text="Fine.").wait_for()
    assert stub.asked[-1]["messages"] == stub.asked[0]["messages"]
    field = {"message": "messages[2].content[0]: 2400 s are too long", "param": "messages[2].content[0]"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=413, json={"error": field}))
    ask(page)
    assert page.locator(".state").last.text_content() == "2400 s are too long."


def test_the_last_turn_is_in_sight(page, stub, recordings):
    choose(page, recordings[0])
    page.click(".options summary")
    stub.script = Scripted("", reasoning="Hm.")
    for number in range(5):
        ask(page, f"Question {number}")
    last, form = page.locator(".turn").last, page.locator("#ask")
    assert last.locator(".foot").text_content().startswith("The model gave no answer.")
    box = last.bounding_box()
    assert box["y"] + box["height"] <= form.bounding_box()["y"]
    stub.script = Scripted("Yes")
    ask(page)
    assert page.locator(".turn").last.locator(".foot .quiet").text_content() == "1 token"


ACCESSIBLE = """() => {
  const wrong = [];
  const seen = new Set();
  const $ = (id) => document.getElementById(id);
  const visible = (one) => one.checkVisibility({ checkVisibilityCSS: true });
  for (const one of document.querySelectorAll("[id]")) {
    if (seen.has(one.id)) wrong.push(`two of id ${one.id}`);
    seen.add(one.id);
  }
  for (const one of document.querySelectorAll("button, input, textarea, select, a, summary, [role]")) {
    const by = (one.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => $(id)?.textContent);
    const labels = [...(one.labels ?? [])].map((label) => label.textContent);
    const names = [one.getAttribute("aria-label"), ...by, ...labels];
    if (one.matches("button, a, summary")) names.push(one.textContent);
    if (!one.matches("[role=alert]") && !names.join("").trim()) wrong.push(`no name: ${one.outerHTML.slice(0, 80)}`);
    if (one.tabIndex > 0) wrong.push(`an order of its own: ${one.outerHTML.slice(0, 80)}`);
  }
  for (const landmark of ["header", "main", "nav", "form", "h1", "html[lang]", "[aria-live=polite]", "[role=alert]"]) {
    if (!document.querySelector(landmark)) wrong.push(`no ${landmark}`);
  }
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
    }
    const channels = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => byte / 255);
    const linear = channels.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !visible(one) || one.closest(".hidden, .skip, [disabled]")) continue;
    const behind = [];
    for (let at = one; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const [back, front] = [paint(behind), paint([...behind, getComputedStyle(one).color])];
    const contrast = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (contrast < 4.5) wrong.push(`${contrast.toFixed(2)}: ${texts.currentNode.textContent.trim().slice(0, 40)}`);
    count += 1;
  }
  if (count < 20) wrong.push(`only ${count} texts were looked at`);
  return wrong;
}"""


def test_who_sees_little_or_uses_a_keyboard_can_use_it(page, stub, recordings):
    stub.script = Scripted(ANSWER, REASONING, TIMES)
    choose(page, recordings[0])
    ask(page)
    page.click(".thinking summary")
    page.click(".options summary")
    page.click(".answer a:nth-of-type(2)")
    until(lambda: page.locator(".answer a[aria-current]").count() == 1)
    page.click("#play")
    page.mouse.move(1, 1)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert page.evaluate(ACCESSIBLE) == [], scheme
        page.click("#help-open")
        assert page.evaluate(ACCESSIBLE) == [], scheme
        page.keyboard.press("Escape")
    page.focus(".skip")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    wanted = [
        "key-open",
        "theme",
        "help-open",
        "files",
        "record",
        "play",
        "speed",
        "zoom",
        "mel",
        "seek",
        "question",
        "send",
    ]
    assert [id for id in order[: order.index("send") + 1] if id in wanted] == wanted


def test_dark_colours_and_narrow_windows(page, recordings):
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    choose(page, recordings[0])
    assert background() == "rgb(251, 250, 248)"
    page.emulate_media(color_scheme="dark")
    assert background() == "rgb(21, 23, 27)"
    page.click("#theme")
    assert background() == "rgb(251, 250, 248)"
    page.reload()
    assert background() == "rgb(251, 250, 248)"  # what was chosen, whatever the system says
    choose(page, recordings[0])
    page.check("#mel")
    for width in (320, 390, 800):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_an_answer_is_heard_and_ends_where_somebody_speaks(page, stub, recordings):
    stub.voices = ["default"]
    page.reload()
    choose(page, recordings)
    ask(page)
    button = page.get_by_role("button", name="Listen to the answer")
    for ends in (button.click, lambda: page.keyboard.press("Escape"), lambda: page.click("#record")):
        button.click()
        page.locator("button[aria-pressed=true]").wait_for()
        ends()
        page.locator("button[aria-pressed=false]").wait_for()
    assert [one["input"] for one in stub.asked[1:]] == [stub.script.answer] * 3
