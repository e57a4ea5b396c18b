"""Redirects of web servers: one on the internet must not send the reader to an address inside of its own network."""

from __future__ import annotations

import asyncio
import ipaddress
from importlib import import_module
from typing import Any


class RefusedRedirect(ValueError):
    """A redirect that is not followed."""


def guarded() -> Any:
    """The aiohttp.TraceConfig of a session that refuses such redirects."""
    tracing = import_module("aiohttp").TraceConfig()  # of an extra, so that types are not checked against it
    tracing.on_request_redirect.append(_check)
    return tracing


async def _check(session: Any, context: Any, asked: Any) -> None:
    """A name is looked up here and once more for the connection: a name server that changes its mind gets around it.

    Raises:
        RefusedRedirect: from a public host to a private, link-local or loopback one.
    """
    source = asked.response.url
    location = asked.response.headers.get("Location", "")
    target = source.join(type(source)(location))
    if target.host is None or target.host == source.host:
        return
    if any(map(is_inside, await addresses(target.host))) and not any(map(is_inside, await addresses(source.host))):
        raise RefusedRedirect(
            f"{source.host} redirects to {target.host}, an address of a private network, which is not followed; "
            "name that address itself if it is meant"
        )


async def addresses(host: str) -> list[str]:
    """The addresses of a host, none where it has no such name."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return []
    return [str(where[0]) for *_, where in found]


def is_inside(address: str) -> bool:
    """Whether an address is none of the internet: private, link-local, loopback, or reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return not found.is_global
