"""Links that leave docs/ lead to the repository, whose address is in AFN_URL; without it they are text."""

import os
import posixpath
import re

URL = os.environ.get("AFN_URL", "").rstrip("/")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def elsewhere(match: re.Match) -> str:
        text, link, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, link))
        if path.startswith("docs/"):
            return match[0]
        return f"[{text}]({URL}/blob/main/{path}{anchor or ''})" if URL else text

    return LINK.sub(elsewhere, markdown)
