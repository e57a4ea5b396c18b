"""Addresses that clients name lead to allowed hosts alone, whatever names resolve to and answers say."""

import asyncio
import ipaddress
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager

import pytest

from afn_model.serve.errors import ApiError
from afn_model.serve.fetch import Fetching, fetch, is_public
from afn_model.serve.settings import Settings

BODY = b"RIFF and so on"
LOCAL = ipaddress.ip_address("127.0.0.1")


@asynccontextmanager
async def answering(*answers: bytes, ends: bool = True, tls: ssl.SSLContext | None = None):
    """(port, requests) of a server that answers so, one connection after another; the last answer to all others."""
    asked, tasks = [], set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers[min(len(asked), len(answers)) - 1])
        await writer.drain()
        if not ends:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        for task in tasks:
            task.cancel()


def answer(body: bytes = BODY, status: str = "200 OK", **headers: str) -> bytes:
    said = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items() if value)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


class NamesOfHosts:
    """A resolver that gives one answer after another, the last one to all who ask later, and notes who is asked for."""

    def __init__(self, *answers: list[str]):
        self.answers, self.asked = answers or (["127.0.0.1"],), []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def local(*answers: list[str], seconds: float = 20.0, tls: ssl.SSLContext | None = None) -> Fetching:
    """Connects to this machine alone, as which every name resolves where nothing else is said."""
    return Fetching(NamesOfHosts(*answers), lambda address: address == LOCAL, seconds, tls)


def fetched(*answers: bytes, path: str = "/a.wav?b=%20c", ends: bool = True, **options):
    """(bytes or error, requests, names that were looked up)."""

    async def run():
        async with answering(*answers, ends=ends) as (port, asked):
            fetching = options.get("fetching") or local()
            settings = Settings(hosts=(f"good.example:{port}", f"next.example:{port}"), max_body_bytes=100_000)
            url = options.get("url", "http://good.example:{port}{path}").format(port=port, path=path)
            try:
                found = await fetch(url, settings, "audio_url.url", fetching)
            except ApiError as error:
                found = error
            return found, asked, fetching.resolve.asked

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_bytes_of_an_allowed_host_by_an_address_looked_up_once():
    found, asked, names = fetched(answer())
    assert found == BODY
    assert names == ["good.example"]
    head = asked[0].decode().split("\r\n")
    assert head[0] == "GET /a.wav?b=%20c HTTP/1.1"
    assert any(line.lower().startswith("host: good.example:") for line in head)
    assert "accept-encoding: identity" in asked[0].decode().lower()
    assert not any(word in asked[0].lower() for word in (b"authorization", b"cookie", b"referer"))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nRIF\r\n1\r\nF\r\n0\r\n\r\n"
    assert fetched(chunked)[0] == b"RIFF"
    assert fetched(b"HTTP/1.0 200 OK\r\n\r\nto the end")[0] == b"to the end"


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example:{port}/",
        "http://good.example/",
        "http://good.example.evil.example:{port}/",
        "http://good.example:{port}@evil.example/",
        "http://user:word@good.example:{port}/",
        "http://127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://[::1]:{port}/",
        "ftp://good.example:{port}/",
        "file:///etc/passwd",
        "gopher://good.example:{port}/",
        "//good.example:{port}/",
        "http://good.example:{port}/a b",
        "http://good.example:{port}/a\r\nX-Evil: 1",
        "http://good.example:{port}\\@evil.example/",
        "http://good.example:99999/",
        "http://goöd.example:{port}/",
        "http://[good.example:{port}/",
        "",
    ],
)
def test_other_addresses_are_not_even_looked_up(url):
    found, asked, names = fetched(answer(), url=url)
    assert isinstance(found, ApiError)
    assert (found.status, found.param, found.code) == (400, "audio_url.url", "not_fetched")
    assert (asked, names) == ([], [])


def test_without_hosts_nothing_is_fetched():
    with pytest.raises(ApiError, match="this server fetches nothing"):
        asyncio.run(fetch("https://good.example/a.wav", Settings(), fetching=local()))


@pytest.mark.parametrize("found", ["10.0.0.1", "127.0.0.1 169.254.169.254", "::1", "::ffff:127.0.0.1", ""])
def test_a_host_in_another_network_is_not_connected_to(found):
    error, asked, names = fetched(answer(), fetching=local(found.split()))
    assert "the network that 'good.example' is in" in str(error)
    assert (asked, names) == ([], ["good.example"])


def test_a_name_that_changes_its_mind_changes_nothing():
    """What was looked at is what is connected to: the second look-up is never made."""
    fetching = local(["127.0.0.1"], ["169.254.169.254"])
    assert fetched(answer(), fetching=fetching)[::2] == (BODY, ["good.example"])
    redirected = fetched(answer(b"", "302 Found", Location="/b"), answer(), fetching=local(["127.0.0.1"], ["10.0.0.1"]))
    assert isinstance(redirected[0], ApiError)
    assert len(redirected[1]) == 1


@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://evil.example/",
        "file:///etc/passwd",
        "//127.0.0.1/",
        "http://good.example/",
        "ftp://good.example/",
    ],
)
def test_redirects_elsewhere_are_not_followed(where):
    found, asked, names = fetched(answer(b"", "302 Found", Location=where), answer())
    assert isinstance(found, ApiError)
    assert (len(asked), names) == (1, ["good.example"])


def test_redirects_to_allowed_hosts_are_looked_up_again():
    found, asked, names = fetched(answer(b"", "307 Go", Location="/b.wav"), answer())
    assert (found, asked[1].split()[1], names) == (BODY, b"/b.wav", ["good.example"] * 2)
    found, asked, names = fetched(*[answer(b"", "302 Found", Location="/again")] * 9)
    assert "more than 3 times" in str(found)
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (answer(bytes(100_001)), 413),
        (answer(b"", Content_Length="100001"), 413),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_001), 413),
        (answer(Content_Encoding="gzip"), 400),
        (answer(b"gone", "404 Not Found"), 400),
        (answer(b"", "204 No Content"), 400),
        (answer(Content_Length="500"), 400),
        (answer(b"", "302 Found"), 400),
        (b"SSH-2.0-OpenSSH\r\n", 400),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, 400),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"", 400),
    ],
)
def test_answers_that_are_no_recording(said, status):
    found, _, _ = fetched(said)
    assert isinstance(found, ApiError)
    assert (found.status, found.param) == (status, "audio_url.url")
    assert "\n" not in str(found)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", answer(Content_Length="500")])
def test_a_host_that_never_ends_has_its_time(said):
    found, _, _ = fetched(said, ends=False, fetching=local(seconds=0.05))
    assert "within 0.05 s" in str(found)


OTHERS = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254"),
    *("ff02::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "2002:a00:1::1", "2001:0:1::1", "2001:db8::1"),
    "fec0::1",
]


@pytest.mark.parametrize("address", OTHERS)
def test_addresses_that_are_nobodys_business(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
def test_addresses_of_the_internet(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_is_checked_against_the_name_and_not_the_address(tmp_path):
    key, made = tmp_path / "key.pem", tmp_path / "made.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=good.example"
    extra = ["-addext", "subjectAltName=DNS:good.example", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(made))
    serving.load_cert_chain(made, key)

    async def run(host: str, tls: ssl.SSLContext | None):
        async with answering(answer(), tls=serving) as (port, _):
            url = f"https://{host}:{port}/a"
            return await fetch(url, Settings(hosts=(f"{host}:{port}",)), None, local(tls=tls))

    assert asyncio.run(run("good.example", trusting)) == BODY
    for host, tls in (("next.example", trusting), ("good.example", None)):
        with pytest.raises(ApiError, match="cannot be connected to"):
            asyncio.run(run(host, tls))
