"""Was it right, and was it like the others: two readings of one outcome.

`faults` holds an outcome against its case, byte by byte, and demands the safety invariants of every
case; it knows no other proxy. `aspects` reduces an outcome to what two proxies can be compared by.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.differential.wire import (
    REQUEST_LINE,
    SENTINEL_TARGET,
    Answer,
    Body,
    Do,
    Fields,
    Outcome,
    Seen,
    named,
    read_answers,
    read_chunked,
    read_fields,
    read_head,
    read_length,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.differential.case import Case

COMMON_WORDS = frozenset(
    b"http close connection content length transfer encoding chunked expect upgrade proxy status date "
    b"request body value target field method version error details trailer crossfade plain header host "
    b"post options trace connect patch delete".split()
)
"""Words that an answer of our own may use although the request used them, too."""

ODD_FRAMING = re.compile(
    rb"\r\n(?:transfer-encoding:(?! ?chunked\r\n)|content-length:(?! ?(?:0|[1-9][0-9]*)\r\n))[^\r]*",
    re.IGNORECASE,
)
"""Legal spellings of the framing that some backend does not understand; it would then see another body."""


# Was it right? ---------------------------------------------------------------------------------------


def faults(case: Case, outcome: Outcome) -> list[str]:
    """Everything in which the outcome is not what the case demands; an empty list is a pass."""
    return [*backend_faults(case, outcome), *client_faults(case, outcome), *invariant_faults(case, outcome)]


def backend_faults(case: Case, outcome: Outcome) -> Iterator[str]:
    wanted, seen = read_requests(case.backend), list(outcome.seen)
    if case.sentinel:
        if not seen or seen.pop().target != SENTINEL_TARGET:
            yield "the request behind the case did not reach the backend"
    elif any(request.target == SENTINEL_TARGET for request in seen):
        yield "the request behind the case reached the backend"
    if case.partial and len(seen) == len(wanted) + 1 and not seen[-1].body.complete:
        seen.pop()
    if len(seen) != len(wanted):
        yield f"the backend saw {[each.line for each in seen]}, not {[each.line for each in wanted]}"
        return
    for want, got in zip(wanted, seen, strict=True):
        if got.line != want.line:
            yield f"request line {got.line!r}, not {want.line!r}"
        got_fields, want_fields = owned(got.fields), owned(want.fields)
        if case.hosts_default:
            got_fields = tuple(field for field in got_fields if field[0].lower() != b"host")
        if got_fields != want_fields:
            yield f"request fields {got_fields}, not {want_fields}"
        yield from body_faults("request", want.body, got.body)


def client_faults(case: Case, outcome: Outcome) -> Iterator[str]:
    statuses = tuple(answer.status for answer in outcome.answers)
    wanted_statuses = case.client + ((200,) if case.sentinel else ())
    if statuses != wanted_statuses:
        yield f"the client saw {statuses}, not {wanted_statuses}"
        return
    answers = list(outcome.answers)
    if case.sentinel and answers.pop().body.data != b"answer to GET " + SENTINEL_TARGET:
        yield "the sentinel got the answer of another"
    yield from unannounced_end(case, outcome)
    if case.answer is None:
        requests = read_requests(case.backend)
        for request, answer in zip(requests, answers, strict=False):
            named_back = (
                b"" if request.method == b"HEAD" else b"answer to " + request.method + b" " + request.target
            )
            if answer.body.data != named_back:
                yield f"the answer to {request.line!r} was {answer.body.data!r}"
        own = answers[len(requests) :]
    else:
        wanted, _ = read_answers(case.answer, case.methods, ended=not case.cut)
        for want, got in zip(wanted, answers, strict=False):
            yield from answer_faults(want, got)
        own = answers[len(wanted) :]
    for answer in own:
        yield from own_answer_faults(case, answer)


def unannounced_end(case: Case, outcome: Outcome) -> Iterator[str]:
    """A proxy that ends the connection behind a whole answer says so in it (RFC 9112, 9.6)."""
    last = outcome.answers[-1] if outcome.answers else None
    by_client = Do.HALF_CLOSE in case.steps or Do.RESET in case.steps
    if not last or not last.body.complete or last.body.framing == "tunnel" or by_client:
        return
    if b"close" not in named(last.fields, b"connection"):
        yield "the connection ended without Connection: close"


def answer_faults(want: Answer, got: Answer) -> Iterator[str]:
    if (got.reason or b"") != (want.reason or b""):
        yield f"reason {got.reason!r}, not {want.reason!r}"
    if got.version != 1:
        yield "the answer calls itself HTTP/1.0"
    if odd := ODD_FRAMING.search(got.head):
        yield f"framing in an odd spelling reached the client: {odd[0]!r}"
    if owned(got.fields) != owned(want.fields):
        yield f"answer fields {owned(got.fields)}, not {owned(want.fields)}"
    yield from body_faults("answer", want.body, got.body)


def own_answer_faults(case: Case, answer: Answer) -> Iterator[str]:
    """An answer of our own: short text, names its reason, ends the connection, echoes nothing."""
    if named(answer.fields, b"content-type") != [b"text/plain; charset=utf-8"]:
        yield f"own answer is {named(answer.fields, b'content-type')}"
    if len(named(answer.fields, b"proxy-status")) != 1:
        yield "own answer without Proxy-Status"
    if named(answer.fields, b"connection") != [b"close"]:
        yield "own answer does not announce the end of the connection"
    if not answer.body.complete or len(answer.body.data) > 200:
        yield "own answer is not short or not whole"
    sent = b" ".join(step for step in case.steps if isinstance(step, bytes)).lower()
    said = (answer.head + answer.body.data).lower()
    words = set(re.findall(rb"[a-z0-9\x80-\xff]{4,}", sent)) - COMMON_WORDS
    if echoed := sorted(word for word in words if word in said):
        yield f"own answer echoes {echoed}"


def body_faults(whose: str, want: Body, got: Body) -> Iterator[str]:
    if want.framing != got.framing:
        yield f"{whose} body is framed by {got.framing}, not {want.framing}"
    if want.complete != got.complete:
        yield f"{whose} body is {'' if got.complete else 'not '}complete"
    if want.complete and want.data != got.data:
        yield f"{whose} body {got.data[:200]!r}, not {want.data[:200]!r}"
    if not got.complete and not want.data.startswith(got.data) and want.data:
        yield f"{whose} body begins {got.data[:200]!r}, not {want.data[:200]!r}"
    if want.trailers != got.trailers:
        yield f"{whose} trailers {got.trailers}, not {want.trailers}"


def invariant_faults(case: Case, outcome: Outcome) -> Iterator[str]:
    """What must hold whatever was sent."""
    if outcome.barrier:
        yield f"the next client got {outcome.barrier!r}"
    if any(request.target.startswith(b"/evil") for request in outcome.seen):
        yield "the backend saw a request that nobody sent"
    for request in outcome.seen:
        if odd := ODD_FRAMING.search(request.head):
            yield f"framing in an odd spelling reached the backend: {odd[0]!r}"
    if outcome.stray:
        yield f"the backend got bytes that are no request: {outcome.stray}"
    if outcome.rest:
        yield f"the client got bytes that are no answer: {outcome.rest[:200]!r}"
    if b"EVIL" in outcome.heard.raw:
        yield "the client got bytes that belong to no answer"
    if outcome.heard.ending == "open":
        yield f"the connection did not end within {case.deadline} s"


def owned(fields: Fields) -> Fields:
    """The fields without those that each proxy writes for its own connection."""
    kept = []
    for name, value in fields:
        if name.lower() == b"connection":
            if b"upgrade" in value.lower():
                kept.append((b"Connection", b"upgrade"))
        elif name.lower() != b"transfer-encoding":
            kept.append((name, value))
    return tuple(sorted(kept, key=lambda field: field[0] == b"Connection"))


def read_requests(raw: bytes) -> list[Seen]:
    """The requests in well-formed bytes; the last body may be incomplete."""
    requests = []
    while raw:
        head = read_head(raw)
        assert head, raw
        lines = head[:-4].split(b"\r\n")
        match = REQUEST_LINE.fullmatch(lines[0])
        assert match, lines[0]
        request = Seen(match[1], match[2], int(match[3]), head, read_fields(lines[1:]))
        raw = raw[len(head) :]
        used, length = 0, read_length(request.fields)
        if named(request.fields, b"transfer-encoding"):
            request.body, used = read_chunked(raw)
        elif length is not None:
            request.body = Body("length", raw[:length], complete=len(raw) >= length)
            used = length
        requests.append(request)
        raw = raw[used:]
    return requests


# Was it like the others? -----------------------------------------------------------------------------

ASPECTS = (
    "status",
    "answer line",
    "answer fields",
    "answer body",
    "requests",
    "request fields",
    "request body",
    "next",
)
MOVED = frozenset({b"connection", b"transfer-encoding", b"content-length"})
"""Written anew by each proxy; the aspects of bodies compare what they mean."""


def aspects(case: Case, outcome: Outcome) -> dict[str, str]:
    """The outcome by `ASPECTS`, in words short enough for a table.

    An answer that the proxy gave itself counts by its status only. Names are compared without case
    and fields by name (HAProxy lowers names, nginx moves fields); that Crossfade does neither is
    asserted by `faults`. A request whose body never became complete is left out: how much of it the
    backend had seen before the proxy gave up is chance.
    """
    played = b"".join(step for step in case.script if isinstance(step, bytes))
    theirs = [answer for answer in outcome.answers if not is_own(answer)]
    seen = [request for request in outcome.seen if request.body.complete]
    return {
        "status": " ".join(map(status_word, outcome.answers)) or f"({outcome.heard.ending})",
        "answer line": show([answer.reason or b"" for answer in theirs]),
        "answer fields": show([fields_of(answer.fields, played) for answer in theirs]),
        "answer body": show([body_of(answer.body) for answer in theirs])
        + (" +stray" if outcome.rest else ""),
        "requests": show([request.line for request in seen]) + (" +stray" if outcome.stray else ""),
        "request fields": show([fields_of(request.fields, None) for request in seen]),
        "request body": show([body_of(request.body) for request in seen]),
        "next": "poisoned" if outcome.barrier else "fine",
    }


def is_own(answer: Answer) -> bool:
    return answer.status >= 200 and not named(answer.fields, b"x-from")


def status_word(answer: Answer) -> str:
    return f"{answer.status}{'' if answer.body.complete else ' (cut)'}"


def show(values: list[bytes] | list[str]) -> str:
    words = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
    return " / ".join(words)


def fields_of(fields: Fields, played: bytes | None) -> str:
    """`played`: what the backend said; Date and Server that it did not say are the proxy's own."""
    kept = []
    for name, value in fields:
        lower = name.lower()
        if lower in MOVED and not (lower == b"connection" and b"upgrade" in value.lower()):
            continue
        if lower in {b"date", b"server"} and played is not None and value not in played:
            continue
        if lower == b"host" and value.startswith(b"127.0.0.1:"):
            value = b"(the target)"
        kept.append((lower, b"upgrade" if lower == b"connection" else value))
    kept.sort(key=lambda field: field[0])
    return ", ".join(f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in kept)


def body_of(body: Body) -> str:
    if body.framing == "none":
        return "none"
    if not body.complete:
        return f"{body.framing} (cut)"  # how much of it came is chance
    trailers = "".join(
        f" +{name.decode().lower()}: {value.decode('latin-1')}" for name, value in body.trailers
    )
    data = body.data.decode("latin-1") if len(body.data) < 64 else f"{len(body.data)} bytes"
    return f"{body.framing} {data!r}{trailers}"
