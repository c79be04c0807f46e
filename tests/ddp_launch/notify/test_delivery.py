"""Delivery to real servers on loopback that are fine, slow, dead, silent or hostile."""

from __future__ import annotations

import ssl
import subprocess
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from shutil import which

import pytest

from ddp_launch.notify import delivery
from ddp_launch.notify.delivery import Mailbox
from ddp_launch.notify.receiver import receiver
from ddp_launch.notify.shapes import Request
from tests.ddp_launch.notify.loopback import dead, drip, flood, garbage, hang, raw, server

SECRET = "/services/s3cret-path"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PAUSE_S", 0.05)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def deliver(url: str, *, limit_s: float = 30.0) -> list[str]:
    """Send one message; what is reported."""
    problems: list[str] = []
    to = receiver(url + SECRET)
    box = Mailbox(to, problems.append)
    box.put(Request(to.url, {"Content-Type": "application/json"}, b"{}"))
    box.close(time.monotonic() + limit_s)
    begin = time.monotonic()
    box.join()
    assert time.monotonic() - begin < limit_s + 5
    assert not any("s3cret" in problem for problem in problems)
    return problems


def test_a_message_arrives_once() -> None:
    with server() as there:
        assert deliver(there.url) == []
        assert [(one.path, one.body) for one in there.received] == [(SECRET, b"{}")]


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_what_passes_is_tried_again(status: int) -> None:
    with server((status, {}, b""), (status, {}, b"")) as there:
        assert deliver(there.url) == []
        assert len(there.received) == 3


def test_four_tries_at_most() -> None:
    with server(*[(500, {}, b"broken")] * 9) as there:
        assert deliver(there.url) == ["JSON (127.0.0.1) did not get a message: HTTP 500: broken (4 tries)"]
        assert len(there.received) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413])
def test_what_is_refused_is_not_tried_again(status: int) -> None:
    with server((status, {}, b"no_service " + SECRET.encode())) as there:
        assert deliver(there.url) == [f"JSON (127.0.0.1) did not get a message: HTTP {status}: no_service /***"]
        assert len(there.received) == 1


def test_retry_after_is_honoured_within_limits() -> None:
    with server((429, {"Retry-After": "0.7"}, b"")) as there:
        assert deliver(there.url) == []
        first, second = there.received
        assert second.at - first.at > 0.6
    with server((429, {"Retry-After": "3600"}, b"")) as there:
        (problem,) = deliver(there.url)
        assert problem.endswith("HTTP 429; it asks to wait 3600 s (1 try)")
    with server((503, {"Retry-After": "20"}, b"")) as there:
        began = time.monotonic()
        (problem,) = deliver(there.url, limit_s=15.0)
        assert time.monotonic() - began < 14
        assert problem.endswith("HTTP 503; it asks to wait 20 s (1 try)")


def test_what_retry_after_may_be() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 60 < delivery._seconds(later) <= 100
    assert delivery._seconds("1.5") == 1.5
    for nonsense in ("", "soon", "-5", "nan", "Thu, 99 Foo 2026", "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert delivery._seconds(nonsense) == 0


def test_redirects() -> None:
    with server() as other, server() as there:
        for status in (301, 302, 303, 307, 308):
            there.answers.append((status, {"Location": other.url + "/elsewhere?token=s3cret"}, b""))
            (problem,) = deliver(there.url)
            assert f"HTTP {status}: it redirects to http://127.0.0.1, which is not followed" in problem
        for place in ("file:///etc/passwd", "ftp://127.0.0.1/x", "//", "", "/login"):
            there.answers.append((302, {"Location": place}, b""))
            assert "which is not followed" in deliver(there.url)[0]
        assert other.received == []
        there.received.clear()
        there.answers.append((308, {"Location": "/moved"}, b""))
        assert deliver(there.url) == []
        assert [(one.path, one.body) for one in there.received] == [(SECRET, b"{}"), ("/moved", b"{}")]


def test_a_loop_of_redirects_ends() -> None:
    with server(*[(307, {"Location": SECRET}, b"")] * 50) as there:
        assert "HTTP 307" in deliver(there.url)[0]
        assert len(there.received) == 4


def test_receivers_that_are_dead_silent_or_speak_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "TRY_S", 0.6)
    with ExitStack() as stack:
        cases = {
            dead(): "connection refused (4 tries)",
            stack.enter_context(raw(hang)): "no answer in time",
            stack.enter_context(raw(drip)): "no answer in time",
            stack.enter_context(raw(garbage)): "no HTTP answer (BadStatusLine) (4 tries)",
            stack.enter_context(raw(garbage)).replace("http:", "https:"): "no TLS connection",
            stack.enter_context(raw(flood)): "HTTP 400: no such channel yyy",
        }
        for url, words in cases.items():
            begin = time.monotonic()
            (problem,) = deliver(url, limit_s=4.0)
            assert words in problem
            assert time.monotonic() - begin < 5.0


def test_a_name_that_nobody_has() -> None:
    assert "did not get a message" in deliver("http://no-such-host.invalid", limit_s=4.0)[0]


def test_the_last_message_overtakes_those_that_wait() -> None:
    problems: list[str] = []
    with server(*[(503, {"Retry-After": "30"}, b"")]) as there:
        to = receiver(there.url + SECRET)
        box = Mailbox(to, problems.append)
        box.put(Request(to.url, {}, b"1"))
        there.wait_for(1)
        box.put(Request(to.url, {}, b"2"))
        box.put(Request(to.url, {}, b"3"))
        box.close(time.monotonic() + 5)
        box.join()
        assert [one.body for one in there.received] == [b"1", b"3", b"2"]
    assert len(problems) == 1


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert deliver("http://receiver.invalid") == []
        assert proxy.received[0].path == f"http://receiver.invalid{SECRET}"
        monkeypatch.setenv("no_proxy", "receiver.invalid")
        assert "did not get a message" in deliver("http://receiver.invalid", limit_s=2.0)[0]
        assert len(proxy.received) == 1


def test_a_socks_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as there:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, there.url.replace("http:", "socks5h:"))
        for scheme in ("http", "https"):
            (problem,) = deliver(f"{scheme}://receiver.invalid", limit_s=4.0)
            assert problem.endswith(f"{scheme}_proxy gives a SOCKS proxy, and messages can use an HTTP proxy only")
        assert there.received == []
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert deliver(there.url) == []


def test_a_file_for_tls_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    (problem,) = deliver("https://receiver.invalid", limit_s=4.0)
    assert "no such file or directory" in problem
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(which("openssl") is None, reason="the program openssl is not installed")
def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with server(context=context) as there:
        url = there.url.replace("127.0.0.1", "localhost")
        (problem,) = deliver(url)
        assert "its certificate is not valid: self-signed certificate" in problem
        assert there.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert deliver(url) == []
        assert [one.path for one in there.received] == [SECRET]
        assert "certificate is not valid: IP address mismatch" in deliver(there.url)[0]
