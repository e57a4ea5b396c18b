"""Recordings from addresses that clients name: only of hosts that the server is told, and of no private network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

REDIRECTS = 3
SECONDS = 60.0  # for all of it
CONNECTING = 10.0
_READ = 1 << 16
_PORTS = {"http": 80, "https": 443}
# What carries an IPv4 address inside, which a gateway would go on to (RFC 6052, 3056, 4380), or is of one site.
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10")))


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's: not of this machine, a private network, a link, a group of hosts, or
    reserved, nor an IPv6 address that stands for another one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return False
        if any(address in network for network in _EMBEDDING):
            return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not special and not address.is_link_local


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system finds them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


@dataclass(frozen=True)
class Fetching:
    """How addresses are fetched; tests have their own.

    Args:
        resolve: the addresses of a host.
        allowed: whether one of them may be connected to.
        seconds: for all of it, redirects included.
        tls: of https; the system's certificates if None.
    """

    resolve: Resolver = resolve
    allowed: Callable[[Address], bool] = is_public
    seconds: float = SECONDS
    tls: ssl.SSLContext | None = None


async def fetch(
    url: str, settings: Settings, param: str | None = None, fetching: Fetching | None = None, most: int | None = None
) -> bytes:
    """The bytes that an http or https address names.

    Each host, that of a redirect too, must be one of ``settings.hosts`` (``name``, or ``name:port`` for another port
    than the scheme's). Its addresses are looked up once, must all be public, and are what is connected to.

    Args:
        url: the address.
        settings: names the hosts.
        param: what errors call the field.
        fetching: how; safely if None.
        most: bytes; those of a request if None.

    Raises:
        ApiError: 400 an address or a host that is not allowed, or that gives nothing; 413 more than ``most`` bytes.
    """
    fetching, most = fetching or Fetching(), settings.max_body_bytes if most is None else most
    try:
        return await asyncio.wait_for(_followed(url, settings, fetching, most), fetching.seconds)
    except asyncio.TimeoutError:
        error = _Refused(f"the recording's host did not send it within {fetching.seconds:g} s")
    except (OSError, h11.RemoteProtocolError, ValueError) as other:
        error = other if isinstance(other, _Refused) else _Refused("the recording's host cannot be read from")
    raise ApiError(error.status, str(error), param=param, code="not_fetched")


class _Refused(ValueError):
    status = 400


class _TooLarge(_Refused):
    status = 413


async def _followed(url: str, settings: Settings, fetching: Fetching, most: int) -> bytes:
    for _ in range(REDIRECTS + 1):
        parts, host, port = _checked(url, settings)
        answer = await _get(parts, host, port, await _pinned(host, port, fetching), fetching, most)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer.where)
    raise _Refused(f"the recording's address leads on more than {REDIRECTS} times")


def _checked(url: str, settings: Settings) -> tuple[SplitResult, str, int]:
    """(parts, host, port) of an address that may be asked."""
    if not settings.hosts:
        raise _Refused("this server fetches nothing: send the recording itself, or upload it first")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > 4096:
        raise _Refused("the recording's address has characters that no address has")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise _Refused("the recording's address is none") from None
    if parts.scheme not in _PORTS:
        raise _Refused("a recording's address must begin with https:// or http://")
    if parts.username is not None or parts.password is not None:
        raise _Refused("the recording's address must not hold a name or a password")
    if port is None:
        port = _PORTS[parts.scheme]
    named = {name.lower() for name in settings.hosts}
    if f"{host}:{port}" not in named and not (host in named and port == _PORTS[parts.scheme]):
        raise _Refused(f"this server fetches nothing from {host!r:.100}, port {port}")
    return parts, host, port


async def _pinned(host: str, port: int, fetching: Fetching) -> list[str]:
    """The addresses of a host, all of them allowed."""
    found = [str(one).partition("%")[0] for one in await fetching.resolve(host, port)]
    if not found or not all(fetching.allowed(ipaddress.ip_address(one)) for one in found):
        raise _Refused(f"this server fetches nothing from the network that {host!r:.100} is in")
    return found


@dataclass(frozen=True)
class _Elsewhere:
    where: str


async def _get(
    parts: SplitResult, host: str, port: int, addresses: list[str], fetching: Fetching, most: int
) -> bytes | _Elsewhere:
    """The body of an answer, or where it sends us."""
    tls = None
    if parts.scheme == "https":
        tls = fetching.tls or await asyncio.to_thread(ssl.create_default_context)
    reader, writer = await _connected(addresses, port, host, tls)
    try:
        http = h11.Connection(h11.CLIENT)
        named = f"[{host}]" if ":" in host else host
        headers = {
            "Host": named if port == _PORTS[parts.scheme] else f"{named}:{port}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # nothing that becomes more than it is
            "User-Agent": "afn-serve",
            "Connection": "close",
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        for event in (h11.Request(method="GET", target=target, headers=list(headers.items())), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        await writer.drain()
        return await _answer(http, reader, most)
    finally:
        writer.transport.abort()


async def _connected(
    addresses: list[str], port: int, host: str, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    error: Exception = OSError("no address")
    for address in addresses:
        try:
            named = {"ssl": tls, "server_hostname": host} if tls is not None else {}
            return await asyncio.wait_for(asyncio.open_connection(address, port, limit=_READ, **named), CONNECTING)
        except (OSError, asyncio.TimeoutError) as found:
            error = found
    raise _Refused("the recording's host cannot be connected to") from error


async def _answer(http: h11.Connection, reader: asyncio.StreamReader, most: int) -> bytes | _Elsewhere:
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ))
        elif isinstance(event, h11.Response):
            said = {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in event.headers}
            if event.status_code in (301, 302, 303, 307, 308) and "location" in said:
                return _Elsewhere(said["location"])
            if event.status_code != 200:
                raise _Refused(f"the recording's host answers with status {event.status_code}")
            if said.get("content-encoding", "identity").lower() != "identity":
                raise _Refused("the recording's host compresses what it sends, which nobody asked for")
            length = said.get("content-length", "0")
            if length.isdecimal() and int(length) > most:
                raise _TooLarge(f"the recording has more than the {most:,} bytes that are allowed")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise _TooLarge(f"the recording has more than the {most:,} bytes that are allowed")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise _Refused("the recording's host has ended early")
