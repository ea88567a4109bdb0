"""The contract kit for adapters: what every adapter must hold, and what yours is to do, as examples.

    from crossfade import Example, Request, check_adapter

    def test_session():
        check_adapter(SessionAdapter(), [Example(client_asks=Request(...), backend_is_asked=Request(...))])

The kit plays the examples and, besides, messages that no example thought of: other bodies, other statuses,
odd fields. An adapter must translate or leave alone whatever comes; what it raises is a 502 to a client.
It builds what the adapter returns into bytes in the way the proxy does, so what passes here can be sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from core.http import RequestHead, ResponseHead
from legacy_adapter.adapter import Adapter
from legacy_adapter.messages import Answer, Request
from proxy.adapted import UnfitError, outgoing_answer, outgoing_request
from proxy.config import Limits
from proxy.head import parse_request, parse_response

_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Example:
    """What the adapter is to make of one request and its answer; what is None is not compared."""

    client_asks: Request
    backend_is_asked: Request | None = None
    backend_answers: Answer | None = None
    client_is_answered: Answer | None = None


class AdapterContractError(AssertionError):
    """What the adapter does not hold. `problems` has a line for each, and so has the text."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def check_adapter(adapter: Adapter, examples: Iterable[Example] = ()) -> None:
    """Raises AdapterContractError with all that is wrong."""
    problems: list[str] = []
    asked = []
    for i, example in enumerate(examples):
        asked.append(example.client_asks)
        problems += _of_example(adapter, example, f"examples[{i}]")
    requests = [*_STRANGE_REQUESTS, *_variants(asked)]
    for request in requests:
        problems += _of_request(adapter, request, f"{request.method} {request.target} {_sketch(request)}")
    for answer in _STRANGE_ANSWERS:
        for request in (_PLAIN, *asked[:1]):
            problems += _of_answer(adapter, answer, request, f"an answer {answer.status} {_sketch(answer)}")
    if problems:
        raise AdapterContractError(list(dict.fromkeys(problems)))


def _of_example(adapter: Adapter, example: Example, name: str) -> Iterator[str]:
    problems = list(_of_request(adapter, example.client_asks, name))
    if not problems and example.backend_is_asked is not None:
        problems += _differences(example.backend_is_asked, adapter.request(example.client_asks), name)
    if example.backend_answers is not None:
        of_answer = list(_of_answer(adapter, example.backend_answers, example.client_asks, name))
        problems += of_answer
        if not of_answer and example.client_is_answered is not None:
            found = adapter.answer(example.backend_answers, example.client_asks)
            problems += _differences(example.client_is_answered, found, name)
    yield from problems


def _of_request(adapter: Adapter, request: Request, name: str) -> Iterator[str]:
    try:
        first, second = adapter.request(request), adapter.request(request)
        outgoing_request(first, _head_of(request), b"backend.test", _LIMITS)
    except UnfitError as error:
        yield f"{name}: the request that comes of it cannot be sent: {error}"
    except Exception as error:
        yield f"{name}: request() raises {type(error).__name__}: {error}"
    else:
        if first != second:
            yield f"{name}: request() makes two things of the same request; nothing may depend on more"


def _of_answer(adapter: Adapter, answer: Answer, request: Request, name: str) -> Iterator[str]:
    try:
        first, second = adapter.answer(answer, request), adapter.answer(answer, request)
        outgoing_answer(first, _head_of_answer(answer), _head_of(request), _LIMITS)
    except UnfitError as error:
        yield f"{name}: the answer that comes of it cannot be sent: {error}"
    except Exception as error:
        yield f"{name}: answer() raises {type(error).__name__}: {error}"
    else:
        if first != second:
            yield f"{name}: answer() makes two things of the same answer; nothing may depend on more"


def _differences(expected: Request | Answer, found: Request | Answer, name: str) -> Iterator[str]:
    """What differs; the case of field names does not count, and JSON is compared as values."""
    if isinstance(expected, Request) and isinstance(found, Request):
        pairs: list[tuple[str, object, object]] = [
            ("method", expected.method, found.method), ("target", expected.target, found.target),
        ]  # fmt: skip
    else:
        pairs = [("status", getattr(expected, "status", None), getattr(found, "status", None))]
    pairs.append(("headers", _comparable(expected.headers), _comparable(found.headers)))
    pairs.append(("body", _value(expected), _value(found)))
    for what, right, wrong in pairs:
        if right != wrong:
            yield f"{name}: {what}: expected {right!r}, found {wrong!r}"


def _comparable(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return sorted((field.lower(), value) for field, value in headers)


def _value(message: Request | Answer) -> object:
    try:
        return message.json() if message.is_json else message.body
    except ValueError:
        return message.body


def _head_of(request: Request) -> RequestHead:
    method = request.method.encode("latin-1")
    raw = b"%b / HTTP/1.1\r\nHost: client.test\r\nContent-Length: %d\r\n\r\n" % (method, len(request.body))
    head = parse_request(raw, max_head=65536, max_target=65536, max_fields=99)
    assert isinstance(head, RequestHead), f"{request.method!r} is no method that a client can use"
    return head


def _head_of_answer(answer: Answer) -> ResponseHead:
    raw = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (answer.status, len(answer.body))
    head = parse_response(raw, max_head=65536)
    assert isinstance(head, ResponseHead), f"{answer.status} is no status that a backend can use"
    return head


def _sketch(message: Request | Answer) -> str:
    kind = message.header("content-type") or "without a type"
    return f"({kind}, {message.body[:20]!r})" if message.body else "(no body)"


def _variants(requests: list[Request]) -> Iterator[Request]:
    """The examples, as somebody sends them who is not logged in, or sends another body."""
    for request in requests:
        yield request.without_header("Cookie").without_header("Authorization")
        yield request.with_header("Authorization", "Basic dTpw").with_header("Cookie", "a=b; =; c; sid=\xe9")
        yield replace(request, body=b"")
        yield replace(request, body=b"\xff\x00no text").with_header(
            "Content-Type", "application/octet-stream"
        )


_JSON = (("Content-Type", "application/json"),)
_PLAIN = Request("GET", "/", headers=(("Host", "client.test"),))
_STRANGE_REQUESTS = (
    _PLAIN,
    replace(_PLAIN, method="HEAD"),
    replace(_PLAIN, method="OPTIONS", target="*"),
    replace(_PLAIN, target="/%C3%A9/%2F?a=%&b&=c&a=1&a=2"),
    replace(_PLAIN, target="//"),
    replace(_PLAIN, headers=(("Cookie", ""), ("Cookie", "x"), ("X-Odd", "\xe9\xff"), ("Authorization", ""))),
    Request("POST", "/", headers=_JSON, body=b"{}"),
    Request("POST", "/", headers=_JSON, body=b"[]"),
    Request("POST", "/", headers=_JSON, body=b"null"),
    Request("POST", "/", headers=(("Content-Type", "text/plain"),), body=b"text"),
)
_STRANGE_ANSWERS = (
    Answer(200),
    Answer(204),
    Answer(304, headers=(("ETag", '"x"'),)),
    Answer(302, headers=(("Location", "/elsewhere"),)),
    Answer(200, headers=_JSON, body=b"{}"),
    Answer(200, headers=_JSON, body=b"[1, null, {}]"),
    Answer(200, headers=_JSON, body=b'"text"'),
    Answer(200, headers=(("Content-Type", "text/html; charset=utf-8"),), body=b"<p>\xc3\xa9"),
    Answer(200, headers=(("Content-Type", "image/png"),), body=b"\x89PNG\xff\x00"),
    Answer(200, headers=(("Set-Cookie", "a=b"), ("Set-Cookie", "c=d; Path=/"), ("Set-Cookie", ""))),
    Answer(401, headers=(("WWW-Authenticate", "Bearer"),)),
    Answer(404, headers=_JSON, body=b'{"error": "none"}'),
    Answer(500, headers=(("Content-Type", "text/html"),), body=b"<h1>Error"),
    Answer(503, headers=(("Retry-After", "1"),), body=b"busy"),
)
