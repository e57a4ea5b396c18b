"""Pages of other servers, in the browser of somebody who may ask this one: they may not, unless they have its key."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers

from afn_model.serve.errors import ApiError


def check_origin(headers: Headers) -> None:
    """For a server that asks for no key: whether a request may come from a page that is not its own.

    A browser sends what any page has it send, and says in ``Origin`` which page that is. A page whose own name is made
    to lead here (DNS rebinding) has the ``Host`` of its name; numbers and names without a dot are nobody else's.

    Raises:
        ApiError: 403.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise ApiError(403, "pages of other servers may ask only with a key (afn serve --api-key)", code="other_origin")
    name = host.rstrip("0123456789").removesuffix(":") if ":" in host else host
    name = name.strip("[]").rstrip(".").lower()
    if "." in name and not name.endswith((".localhost", ".local")) and not _is_number(name):
        what = f"without a key (afn serve --api-key) this server is asked by number, not as {name!r:.80}"
        raise ApiError(403, what, code="other_host")


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
