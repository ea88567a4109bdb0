"""curl, used as people use it: each way of asking, compared with asking directly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.backends.script import PACKED, PAYLOAD, TEXT
from tests.clients.conftest import Place, Stage
from tests.clients.people import Curl, CurlError, Report

WAYS = {
    "HTTP/1.0": ("/bytes/70000", "--http1.0"),
    "HTTP/1.0 without a length": ("/stream/300000", "--http1.0"),
    "HTTP/1.0 posts": ("/upload", "--http1.0", "--data", "a=1"),
    "HTTP/1.0 keeps alive": ("/bytes/10", "--http1.0", "--header", "Connection: keep-alive"),
    "asks for HTTP/2": ("/bytes/70000", "--http2"),
    "head": ("/bytes/70000", "--head"),
    "head of a stream": ("/stream/70000", "--head"),
    "one answer only": ("/bytes/10", "--header", "Connection: close"),
    "decoded gzip": ("/packed/gzip", "--compressed"),
    "decoded brotli": ("/packed/br", "--compressed"),
    "transfer codings": ("/bytes/70000", "--tr-encoding"),
    "a range": ("/range", "--range", "100-199"),
    "the end": ("/range", "--range", "-100"),
    "resume": ("/range", "--continue-at", "5000"),
    "if changed since": ("/range", "--time-cond", "Wed, 01 Jan 2020 00:00:00 GMT"),
    "if the tag differs": ("/range", "--header", 'If-None-Match: "seven"'),
    "cookies": ("/whoami", "--cookie", "a=1; b=2"),
    "a redirect, not followed": ("/redirect/302",),
    "a redirect, followed": ("/redirect/302", "--location"),
    "a redirect by host, followed": ("/elsewhere", "--location", "--insecure"),
    "a post redirected": ("/redirect/307", "--location", "--data", "again"),
    "a post that turns into get": ("/redirect/303", "--location", "--data", "again"),
    "a form": ("/upload", "--data-urlencode", "name=väl ue&more", "--data", "b=2"),
    "json": ("/upload", "--json", '{"a": [1, 2]}'),
    "basic credentials": ("/echo", "--user", "me:secret"),
    "another host": ("/echo", "--header", "Host: shop.example.com"),
    "an empty field": ("/echo", "--header", "X-Empty;"),
    "no agent": ("/echo", "--header", "User-Agent:", "--header", "Accept:"),
    "dots in the path": ("/echo/../a/./b//c", "--path-as-is"),
    "everything": ("/", "--request", "OPTIONS", "--request-target", "*"),
    "a method in small letters": ("/echo", "--request", "get"),
    "an upload": ("/upload", "--upload-file", "FILE"),
    "an upload in chunks": ("/upload", "--upload-file", "FILE", "--header", "Transfer-Encoding: chunked"),
    "an upload that asks first": ("/upload", "--upload-file", "FILE", "--header", "Expect: 100-continue"),
    "an upload that does not": ("/upload", "--upload-file", "FILE", "--header", "Expect:"),
    "an upload by HTTP/1.0": ("/upload", "--upload-file", "FILE", "--http1.0"),
    "an upload while unavailable": ("/status/503", "--upload-file", "FILE"),
}

OF_CURL = ("http_code", "size_upload", "size_download", "num_redirects", "content_type", "method", "exitcode")
OF_THE_HOP = ("date:", "connection:", "keep-alive:")


@pytest.mark.parametrize("way", WAYS)
def test_the_same_as_directly(way: str, curl: Curl, place: Place) -> None:
    target, *options = WAYS[way]
    file = PAYLOAD[:150_000] if "FILE" in options else None
    reports = curl.run([origin + target for origin in (place.direct, *place.fronts)], *options, file=file)
    direct, plain, secure = (_plain(report) for report in reports)
    if way == "a redirect by host, followed":
        # The application was told of the client's scheme, so its redirect leads back to the right place.
        assert [report.said["scheme"] for report in reports] == ["HTTP", "HTTP", "HTTPS"]
    assert plain == direct
    assert secure == direct


def _plain(report: Report) -> dict[str, Any]:
    """All that must not depend on the way, with the origin replaced by its name."""
    netloc = report.url.split("/")[2]
    heads = [
        [
            line.replace(f"https://{netloc}", "ORIGIN").replace(f"http://{netloc}", "ORIGIN")
            for line in head.split("\r\n")
            if not line.lower().startswith(OF_THE_HOP)
        ]
        for head in report.heads
    ]
    finals = [[_status(head[0]), *head[1:]] for head in heads if not _status(head[0]).startswith("1")]
    said = {key: report.said[key] for key in OF_CURL}
    return {"heads": finals, "body": report.got().body, **said}


def _status(line: str) -> str:
    """The status line without its version, which is this connection's own."""
    return line.partition(" ")[2]


def test_the_ways_lead_where_they_should(curl: Curl, place: Place) -> None:
    """What is compared above is what was meant."""
    origins = (place.direct, *place.fronts)

    def bodies(target: str, *options: str, file: bytes | None = None) -> set[bytes]:
        return {
            report.body for report in curl.run([origin + target for origin in origins], *options, file=file)
        }

    assert bodies("/packed/gzip", "--compressed") == {TEXT}
    assert bodies("/packed/br", "--compressed") == {TEXT}
    assert bodies("/packed/br") == {PACKED["br"]}
    assert bodies("/stream/300000", "--http1.0") == {PAYLOAD[:300_000]}
    assert bodies("/range", "--continue-at", "5000") == {TEXT[5000:]}
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    chunked = ("--header", "Transfer-Encoding: chunked")
    for options in ((), chunked, ("--header", "Expect: 100-continue"), ("--http1.0",)):
        for body in bodies("/upload", "--upload-file", "FILE", *options, file=PAYLOAD):
            assert json.loads(body)["sha256"] == digest


def test_an_error_is_an_error(curl: Curl, place: Place) -> None:
    for origin in (place.direct, *place.fronts):
        with pytest.raises(CurlError) as failure:
            curl.run([origin + "/status/404"], "--fail")
        assert failure.value.args[0] == 22


def test_a_connection_is_kept(curl: Curl, place: Place) -> None:
    """Ten requests of one curl share one connection to Crossfade, and so do those of a 1.0 that asks."""
    for front in place.fronts:
        reports = curl.run([front + "/bytes/1000"] * 10)
        assert [report.said["num_connects"] for report in reports] == [1] + [0] * 9
        kept = curl.run([front + "/bytes/1000"] * 3, "--http1.0", "--header", "Connection: keep-alive")
        assert [report.said["num_connects"] for report in kept] == [1, 0, 0]
        closed = curl.run([front + "/bytes/1000"] * 3, "--header", "Connection: close")
        assert [report.said["num_connects"] for report in closed] == [1, 1, 1]


def test_leave_to_send_is_passed_on(curl: Curl, place: Place) -> None:
    """Crossfade passes the backend's 100 on, and gives leave itself where a backend knows nothing of it."""
    for front in place.fronts:
        report = curl.run([front + "/upload"], "--upload-file", "FILE", "--header", "Expect: 100-continue",
                          "--expect100-timeout", "15", file=PAYLOAD[:50_000])[0]  # fmt: skip
        assert [_status(head.split("\r\n")[0]) for head in report.heads] == ["100 Continue", "200 OK"]
        assert report.said["time_total"] < 10


def test_an_upload_that_is_not_wanted_is_not_sent(curl: Curl, stage: Stage) -> None:
    place = stage.places["aiohttp"]
    reports = curl.run([origin + "/demanding" for origin in (place.direct, *place.fronts)], "--upload-file",
                       "FILE", "--header", "Expect: 100-continue", "--expect100-timeout", "15",
                       file=PAYLOAD)  # fmt: skip
    for report in reports:
        assert report.said["http_code"] == 403
        assert report.said["size_upload"] == 0
        assert report.body == b"no such thing"


def test_a_cookie_jar(curl: Curl, place: Place, tmp_path: Path) -> None:
    for number, origin in enumerate((place.direct, *place.fronts)):
        jar = str(tmp_path / f"jar{number}")
        curl.run([origin + "/cookies"], "--cookie-jar", jar)
        report = curl.run([origin + "/whoami"], "--cookie", jar)[0]
        assert sorted(report.body.split(b"; ")) == [b"a=1", b'b="x y"']


def test_as_a_forward_proxy(curl: Curl, place: Place) -> None:
    """A client may take Crossfade for its proxy; what it asks for is still asked of the backend."""
    port = place.direct.rpartition(":")[2]
    report = curl.run([f"http://localhost:{port}/bytes/1000"], "--noproxy", "", "--proxy", place.fronts[0])[0]
    assert report.body == PAYLOAD[:1000]
