"""The page's files, and pictures of recordings, as they are served."""

import asyncio
import base64
import hashlib
import re

import httpx
import numpy as np
import pytest
import torch

from afn_model.serve import page_routes
from afn_model.serve.app import HEADERS
from afn_model.serve.page_routes import FOLDER, STYLE_HASH, files
from afn_model.serve.peaks import peaks
from afn_model.serve.recording import Recording
from afn_model.serve.settings import Settings
from afn_model.serve.spectrogram import spectrogram
from tests.browser.stub_server import Stub
from tests.house.wheels import ROOT
from tests.tiny import noise

ID = "a" * 64


@pytest.fixture(scope="module")
def stub():
    found = Stub(Settings(name="tiny", keys=("right", "other")))
    owner = found.client_of({"authorization": "Bearer right"})
    found.uploads.add(owner, Recording(ID, torch.from_numpy(noise(31)).float()))
    return found


@pytest.fixture
def get(stub):
    """Asks for a path, with the key of who has uploaded the recording."""

    async def asks(path: str, key: str = "right", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(stub.app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path, headers={"Authorization": f"Bearer {key}"} | headers)

    return lambda *args, **headers: asyncio.run(asks(*args, **headers))


def test_files_are_served_with_their_types_and_policies(get):
    assert {"index.html", "page.css", "page.js", "icon.svg", "worklet.js", "vendor/wavesurfer.js"} <= files().keys()
    assert "vendor/LICENSE" not in files()
    for path, (data, kind, _) in files().items():
        found = get("/" if path == "index.html" else f"/page/{path}", key="")
        assert (found.status_code, found.content, found.headers["content-type"]) == (200, data, kind)
        assert found.headers["cache-control"] == "no-cache"
        assert found.headers["x-content-type-options"] == "nosniff"
    policy = dict(rule.split(" ", 1) for rule in get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["style-src"] == f"'self' '{STYLE_HASH}'"
    assert policy["object-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_a_file_that_a_browser_has_is_not_sent_again(get):
    first = get("/page/page.js")
    for known in (first.headers["etag"], f'"x", W/{first.headers["etag"]}'):
        again = get("/page/page.js", **{"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert get("/page/page.js", **{"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize("path", ["../page_routes.py", "..%2fpage_routes.py", "%2e%2e/app.py", "vendor/../../app.py",
                                  "/etc/passwd", "vendor", "vendor/LICENSE", "", "page.js%00", "c:\\x"])  # fmt: skip
def test_nothing_else_is_served(get, path):
    found = get(f"/page/{path}")
    assert found.status_code == 404
    assert found.json()["error"]["type"] == "not_found_error"


def test_nothing_is_inline_or_from_elsewhere():
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert scripts == [(' type="module" src="/page/page.js"', "")]
    ours = [name for name in files() if not name.startswith("vendor/")]
    for name in ours:
        text = (FOLDER / name).read_text()
        assert not re.search(r"(src|href|url|from|import|fetch)\W{1,3}(https?:)?//", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        for imported in re.findall(r'(?:from|import) "\./([^"]+)"', text):
            assert imported in files(), (name, imported)
    for asked in re.findall(r'(?:src|href)="/page/([^"]+)"', page):
        assert asked in files(), asked
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    for name in ours:
        assert set(re.findall(r'\$\("([^"]+)"\)', (FOLDER / name).read_text())) <= ids, name


def test_what_is_vendored_is_what_was_published():
    vendor = FOLDER / "vendor"
    sums = dict(reversed(line.split()) for line in (vendor / "SHA256").read_text().splitlines())
    assert sums.keys() == {file.name for file in vendor.iterdir()} - {"SHA256"}
    for name, digest in sums.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
    assert "wavesurfer.js" in (ROOT / "NOTICE").read_text()
    assert "BSD 3-Clause" in (vendor / "LICENSE").read_text()


def test_the_policy_names_the_style_of_wavesurfer():
    code = (FOLDER / "vendor" / "wavesurfer.js").read_text()
    (style,) = re.findall(r'<style\$\{.*?""\}>(.*?)</style>', code)
    height = re.search(r"^const HEIGHT = (\d+);", (FOLDER / "player.js").read_text(), re.MULTILINE)[1]
    said = re.sub(r"\$\{this\.getHeight\([^}]*\)\}", height, style).replace("\\n", "\n")
    assert "${" not in said
    digest = base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()
    assert f"sha256-{digest}" == STYLE_HASH


def test_wheels_carry_the_page():
    packed = re.search(r'"afn_model\.serve": \[(.*)\]', (ROOT / "setup.py").read_text())[1]
    patterns = re.findall(r'"([^"]+)"', packed)
    carried = {file for pattern in patterns for file in FOLDER.parent.glob(pattern) if file.is_file()}
    assert carried == {file for file in FOLDER.rglob("*") if file.is_file()}


def test_peaks_of_a_recording(get, stub):
    pcm = next(iter(stub.uploads._kept.values()))
    pcm = getattr(pcm, "recording", pcm).pcm
    found = get(f"/v1/audio/{ID}/peaks?n=500").json()
    outline, loudest = peaks(pcm, 500)
    assert found.pop("peaks") == base64.b64encode(outline.numpy().tobytes()).decode()
    assert found == {"id": ID, "seconds": 31.0, "n": 500, "loudest": loudest}
    assert len(base64.b64decode(get(f"/v1/audio/{ID}/peaks").json()["peaks"])) == 2 * 2000
    assert get(f"/v1/audio/{ID}/peaks?n=0").json()["error"]["param"] == "query.n"
    assert get(f"/v1/audio/{ID}/peaks?n=0").status_code == 400


def test_pictures_of_a_recording(get, stub):
    pcm = next(iter(stub.uploads._kept.values()))
    pcm = getattr(pcm, "recording", pcm).pcm
    found = get(f"/v1/audio/{ID}/mel/1.png?columns=150")
    assert found.headers["content-type"] == "image/png"
    assert found.content == spectrogram(pcm, 1, 150)
    assert np.isclose(float(found.headers["content-length"]), len(found.content))
    for path in ("2.png", "-1.png", "0.png?columns=7", "x.png"):
        assert get(f"/v1/audio/{ID}/mel/{path}").status_code == 400, path


def test_recordings_are_their_owners(get):
    for path in (f"/v1/audio/{ID}/peaks", f"/v1/audio/{ID}/mel/0.png"):
        assert get(path, "other").status_code == 404
        assert get(path, "").status_code == 401
    assert get(f"/v1/audio/{'b' * 64}/peaks").json()["error"]["message"].startswith("there is no such recording")


def test_files_are_read_once():
    assert page_routes.files() is page_routes.files()
