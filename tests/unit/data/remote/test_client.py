"""The HTTP client by itself: what it asks, what it believes, how long it waits, and what it never tells."""

from __future__ import annotations

import base64
import http.server
import json
import pickle
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from sigma.data.record import Unavailable
from sigma.data.remote.client import HttpClient, Version
from sigma.data.remote.connection import tls_context
from tests.unit.data.loopback import Plan, loopback_hub
from tests.unit.data.remote.conftest import HASTY

CONTENT = bytes(range(256)) * 400
FILE = "datasets/a/b/x.bin"


@pytest.fixture
def hub():
    with loopback_hub(0, {FILE: CONTENT, "list.json": b'{"a": 1}'}) as hub:
        yield hub


def client(**options):
    return HttpClient("test", replace(HASTY, **options))


def parsed(answer):
    return json.loads(answer.body)


def refusal(call, *args):
    """The reason of the Unavailable that a call raises."""
    with pytest.raises(Unavailable) as caught:
        call(*args)
    return caught.value


def test_a_range_is_exact_and_knows_the_version(hub):
    url = f"{hub.url}/{FILE}"
    part, version = client().get_range(url, 300, 1000, None)
    assert (part, version.size) == (CONTENT[300:1000], len(CONTENT))
    assert client().get_range(url, len(CONTENT) - 5, len(CONTENT) + 99, version)[0] == CONTENT[-5:]


def test_a_file_of_another_version_is_refused(hub):
    url = f"{hub.url}/{FILE}"
    assert "whole file" in refusal(client().get_range, url, 0, 9, Version('"older"', len(CONTENT))).reason
    assert "changed" in refusal(client().get_range, url, 0, 9, Version(None, 5)).reason


def test_a_range_behind_the_end_is_refused(hub):
    assert "416" in refusal(client().get_range, f"{hub.url}/{FILE}", len(CONTENT), len(CONTENT) + 9, None).reason


def test_a_request_names_the_program_and_refuses_compression(hub):
    client().get(f"{hub.url}/list.json", 100, parsed)
    assert hub.headers[0]["User-Agent"].startswith("sigma-trainer/")
    assert hub.headers[0]["Accept-Encoding"] == "identity"


def test_an_answer_larger_than_allowed_is_not_read(hub):
    assert "more than the 4 allowed" in refusal(client().get, f"{hub.url}/list.json", 4, parsed).reason
    hub.plan = Plan(["endless"] * 9)
    assert "more than the 100 bytes" in refusal(client().get, f"{hub.url}/list.json", 100, parsed).reason


def test_an_answer_that_ends_early_is_not_parsed(hub):
    hub.plan = Plan(["short"] * 9)
    assert "ended 4 bytes early" in refusal(client().get, f"{hub.url}/list.json", 100, lambda answer: None).reason


def test_an_answer_that_cannot_be_parsed_is_asked_for_again(hub):
    hub.plan = Plan(["nolength", None])
    assert client().get(f"{hub.url}/list.json", 100, parsed) == {"a": 1}
    assert len(hub.requests) == 2


def test_attempts_are_counted_and_end(hub):
    hub.plan = Plan(["503"] * 99)
    assert "503" in refusal(client(attempts=3).get, f"{hub.url}/list.json", 100, parsed).reason
    assert len(hub.requests) == 3


@pytest.mark.parametrize("status", ["403", "404"])
def test_what_is_refused_is_not_asked_for_again_at_once(hub, status):
    hub.plan = Plan([status] * 9)
    error = refusal(client(banned_s=900).get, f"{hub.url}/list.json", 100, parsed)
    assert (len(hub.requests), error.retry_after_s) == (1, {"403": 900, "404": 0}[status])


def test_a_short_retry_after_is_waited_for(hub):
    hub.plan = Plan(["429+1"])
    start = time.monotonic()
    assert client().get(f"{hub.url}/list.json", 100, parsed) == {"a": 1}
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(
    "header, seconds",
    [("30", 30), ("999999999", 3600), ("-5", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:40 GMT", 40), ("²", 0)],
)
def test_a_long_retry_after_is_handed_on_and_capped(header, seconds):
    """A date counts from the server's own clock: ours may be wrong by years."""
    date = "Date: Wed, 21 Oct 2015 07:28:00 GMT"
    raw = f"HTTP/1.1 503 Busy\r\n{date}\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    with answering(raw.encode("latin-1")) as url:
        assert refusal(client(attempts=1).get, url, 100, parsed).retry_after_s == seconds


class answering:
    """A server that answers every request with the same bytes."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.seen = raw, []

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/x"

    def _serve(self):
        while True:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            with connection:
                self.seen.append(connection.recv(65536))
                connection.sendall(self.raw)

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 206 Part\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 5-4/3\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a:99999/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe \r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 Nothing\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
        b"HTTP/1.1 999 ?\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:60]),
)
def test_an_answer_that_is_no_good_http_is_unavailable_and_nothing_else(answer):
    with answering(answer) as url:
        refusal(client(attempts=2).get_range, url, 0, 2, None)


def test_a_server_that_drips_is_given_up_long_before_its_body_ends(hub):
    hub.plan = Plan(["slow"] * 9)
    start = time.monotonic()
    assert "slower than" in refusal(client(attempts=1).get, f"{hub.url}/{FILE}", len(CONTENT), parsed).reason
    assert time.monotonic() - start < 3


def test_headers_that_drip_are_given_up(hub):
    hub.plan = Plan(["slow-header"] * 9)
    refusal(client(attempts=1, least_rate=1).get, f"{hub.url}/list.json", 100, parsed)


def test_close_breaks_off_a_read_in_another_thread(hub):
    hub.plan = Plan(["hang"] * 9)
    patient, raised = client(read_s=30, total_s=60, rate_grace_s=60), []
    thread = threading.Thread(target=lambda: raised.append(refusal(patient.get, f"{hub.url}/list.json", 100, parsed)))
    thread.start()
    while not hub.requests:
        time.sleep(0.01)
    patient.close()
    thread.join(5)
    assert raised
    hub.plan = Plan()
    assert patient.get(f"{hub.url}/list.json", 100, parsed) == {"a": 1}, "it may be used again"


def test_close_breaks_off_the_pause_between_attempts(hub):
    hub.plan = Plan(["503"] * 9)
    patient = client(backoff_s=30, most_backoff_s=30)
    thread = threading.Thread(target=lambda: refusal(patient.get, f"{hub.url}/list.json", 100, parsed))
    thread.start()
    while not hub.requests:
        time.sleep(0.01)
    patient.close()
    thread.join(5)
    assert not thread.is_alive()


def test_a_dead_server_and_an_unknown_name_are_unavailable(hub):
    hub.die()
    assert "refused" in refusal(client().get, f"{hub.url}/list.json", 100, parsed).reason
    assert "address" in refusal(client().get, "http://no-such-host.invalid/x", 100, parsed).reason


def test_connections_are_kept_and_a_stale_one_is_replaced_at_once(hub):
    kept = client(attempts=1)
    for _ in range(3):
        kept.get(f"{hub.url}/list.json", 100, parsed)
    assert len(hub._open) == 1
    hub.die()
    hub.revive()
    assert kept.get(f"{hub.url}/list.json", 100, parsed) == {"a": 1}


def test_the_token_goes_to_its_origin_only_and_is_never_told(hub):
    with loopback_hub(0, {"x": b"{}"}) as other:
        own = HttpClient("test", HASTY, token="hf_abcdefgh12345678", token_url=hub.url)
        own.get(f"{hub.url}/list.json", 100, parsed)
        own.get(f"{other.url}/x", 100, parsed)
    assert hub.headers[0]["Authorization"] == "Bearer hf_abcdefgh12345678"
    assert "Authorization" not in other.headers[0]
    hub.plan = Plan(["403"])
    assert "hf_abc" not in str(refusal(own.get, f"{hub.url}/list.json?token=hf_abcdefgh12345678", 100, parsed))


def test_a_redirect_to_another_server_loses_the_token(hub):
    with loopback_hub(0, {"x": b"{}"}) as other:
        raw = f"HTTP/1.1 302 Found\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(raw) as url:
            HttpClient("test", HASTY, token="secret", token_url=url).get(url, 100, parsed)
        assert "Authorization" not in other.headers[0]


def test_a_redirect_is_remembered_and_asked_for_anew_when_it_no_longer_works(hub):
    kept, url = client(), f"{hub.url}/datasets/a/b/resolve/main/x.bin"
    for _ in range(3):
        kept.get_range(url, 0, 9, None)
    assert [path.split("/")[0] for path, _ in hub.requests] == ["datasets", "cdn", "cdn", "cdn"]
    hub.plan = Plan(["403"])
    assert kept.get_range(url, 0, 9, None)[0] == CONTENT[:9]


def test_https_never_becomes_http():
    from sigma.data.remote.client import _Failed, _redirect

    with pytest.raises(_Failed):
        _redirect("https://a.example/x", "http://a.example/x")
    assert _redirect("http://a.example/x", "https://a.example/y") == "https://a.example/y"


def test_a_proxy_of_the_environment_is_used_with_its_credentials(hub, monkeypatch):
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + b'{"p": 1}'
    proxy = answering(body)
    with proxy as url:
        monkeypatch.setenv("http_proxy", url.replace("http://", "http://me:p%40ss@").removesuffix("/x"))
        assert client().get("http://data.example/list?a=1", 100, parsed) == {"p": 1}
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert client().get(f"{hub.url}/list.json", 100, parsed) == {"a": 1}
    request = proxy.seen[0].decode()
    assert request.startswith("GET http://data.example/list?a=1 HTTP/1.1")
    assert "Proxy-Authorization: Basic " + base64.b64encode(b"me:p@ss").decode() in request


@pytest.mark.parametrize("status", [407, 502])
def test_a_proxy_that_refuses_is_unavailable_and_its_password_is_not_told(monkeypatch, status):
    with answering(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()) as url:
        proxy = url.replace("http://", "http://me:hunter22@").removesuffix("/x")
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("https_proxy", proxy)
        for scheme in ("http", "https"):
            assert "hunter22" not in str(refusal(client(attempts=1).get, f"{scheme}://data.example/", 100, parsed))


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:port", "http://[::1", "http://"])
def test_a_proxy_that_is_no_address_is_unavailable(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    refusal(client(attempts=1).get, "http://data.example/", 100, parsed)


def test_other_kinds_of_proxy_are_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    assert "socks5:// are not supported" in refusal(client(attempts=1).get, "http://data.example/", 100, parsed).reason


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that nobody signed, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*command, *names, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the command openssl: the standard library makes no certificates")
    return folder


@pytest.fixture
def secure(certificate):
    """The address of a server with that certificate."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://localhost:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_nobody_signed_is_refused_at_once(secure):
    start = time.monotonic()
    assert "no trusted connection" in refusal(client(backoff_s=9).get, secure, 100, parsed).reason
    assert time.monotonic() - start < 5, "trying again does not help"


def test_a_trusted_certificate_is_accepted(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    tls_context.cache_clear()
    try:
        assert client().get(secure, 100, parsed) == {}
        assert "no trusted" in refusal(client().get, secure.replace("localhost", "127.0.0.1"), 100, parsed).reason
    finally:
        tls_context.cache_clear()


def test_a_client_can_be_pickled_after_use(hub):
    used = client()
    used.get(f"{hub.url}/list.json", 100, parsed)
    assert pickle.loads(pickle.dumps(used)).get(f"{hub.url}/list.json", 100, parsed) == {"a": 1}
