"""The page in front of the whole server, with a tiny model whose answers are forced to be what is looked at."""

from __future__ import annotations

import json

import pytest

from tests.browser.conftest import opened
from tests.browser.test_page import ask, choose, plays_from
from tests.model.serve.serving import running, tiny_server

pytestmark = pytest.mark.slow
SAID = "A dog barks at 0:03 and at 0:59."


@pytest.mark.parametrize("key", ["", "secret"])
def test_a_question_about_a_recording(browser, recordings, key):
    def forced(route, request) -> None:
        body = json.loads(request.post_data)
        if body["messages"][-1]["role"] == "user":
            schema = {"name": "said", "schema": {"const": SAID}}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        route.continue_(post_data=json.dumps(body))

    server = tiny_server(max_new_tokens=60, keys=(key,) if key else ())
    with running(server) as address, opened(browser, address) as page:
        page.route("**/v1/chat/completions", forced)
        if key:
            page.fill("#key", key)
            page.keyboard.press("Enter")
        page.locator("#model", has_text="tiny").wait_for()
        choose(page, recordings[0])
        ask(page)
        assert page.text_content(".answer") == f'"{SAID}"'
        links = page.locator(".answer a")
        assert links.all_text_contents() == ["0:03", "0:59"]
        assert links.nth(1).get_attribute("class") == "time-link wrong"  # past the end
        links.nth(0).click()
        plays_from(page, 3)
        page.click(".options summary")
        page.check("#think")
        ask(page, "Why?")
        assert page.locator(".turn:nth-child(2) .reasoning").text_content()
