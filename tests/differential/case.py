"""A case as data: what is sent, what is answered, and what Crossfade must make of it.

`backend` and `answer` are written as the bytes that must arrive, and are read by the strict readers
of `wire`, so a case says the whole truth in HTTP's own spelling. Compared are: the start line byte by
byte; every field with its case, order and value; the decoded body, its trailers, and whether it was
complete. Not compared is what every proxy owns on its own connection: the field `Connection` (except
for its `upgrade`), `Transfer-Encoding` and the size of chunks (the kind of framing is compared).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.differential.wire import SENTINEL, Do, Step

HOST = b"Host: a.test\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation with a proxy, and the expectation for Crossfade."""

    name: str
    rule: str
    """The clause it is about, or the advisory."""
    steps: tuple[Step, ...]
    """What the client does."""
    backend: bytes
    """The requests that the backend must see, without the sentinel."""
    client: tuple[int, ...]
    """The statuses that the client must see, without the sentinel's 200."""
    script: tuple[Step, ...] = ()
    """What the backend does on the target `/case`."""
    answer: bytes | None = None
    """The answers to the requests of `backend` as the client must read them, when they are scripted."""
    sentinel: bool = False
    """The sentinel was sent and must get through: the connection survived the case."""
    partial: bool = False
    """The backend may see one further request whose body never becomes complete."""
    cut: bool = False
    """The client's last answer must be visibly incomplete."""
    methods: tuple[bytes, ...] = ()
    """The methods of the requests where they are not GET."""
    deadline: float = 5.0
    hosts_default: bool = False
    """HTTP/1.0 without Host: the field Host that the proxy adds names the target and is not compared."""


def get(
    target: bytes = b"/x", fields: bytes = b"", method: bytes = b"GET", version: bytes = b"HTTP/1.1"
) -> bytes:
    return method + b" " + target + b" " + version + b"\r\n" + HOST + fields + b"\r\n"


def post(fields: bytes, body: bytes, target: bytes = b"/x") -> bytes:
    return get(target, fields, b"POST") + body


def chunked(body: bytes, fields: bytes = b"", target: bytes = b"/x") -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n" + fields, body, target)


def passes(
    name: str,
    sent: bytes,
    rule: str,
    *,
    backend: bytes | None = None,
    client: tuple[int, ...] = (200,),
    last: bool = False,
    methods: tuple[bytes, ...] = (),
    hosts_default: bool = False,
) -> Case:
    """Forwarded as sent, or as `backend` says; `last`: the connection ends with it by the client's wish."""
    return Case(
        name,
        rule,
        (sent + SENTINEL,),
        sent if backend is None else backend,
        client,
        sentinel=not last,
        methods=methods,
        hosts_default=hosts_default,
    )


def refused(
    name: str,
    sent: bytes,
    rule: str,
    status: int = 400,
    *,
    after: bytes = b"",
    partial: bool = False,
    methods: tuple[bytes, ...] = (),
) -> Case:
    """Answered by the proxy itself and never seen by the backend; `after` passed before it."""
    passed = after.count(b" HTTP/1.")
    return Case(
        name, rule, (sent + SENTINEL,), after, (200,) * passed + (status,), partial=partial, methods=methods
    )


ASK = get(b"/case", b"Connection: close\r\n")
ASKED = get(b"/case")


def relayed(
    name: str,
    script: bytes | tuple[Step, ...],
    rule: str,
    *,
    answer: bytes | None = None,
    ask: bytes = ASK,
    backend: bytes = ASKED,
    client: tuple[int, ...] | None = None,
    methods: tuple[bytes, ...] = (),
    cut: bool = False,
    ends: bool = True,
) -> Case:
    """The backend plays `script`; the client must read `answer`, by default exactly what was played.

    `ends=False`: the backend keeps the connection open after its last byte.
    """
    steps = (script,) if isinstance(script, bytes) else script
    if not ends:
        steps = (*steps, Do.AFTER_CLIENT)
    played = b"".join(step for step in steps if isinstance(step, bytes)) if answer is None else answer
    statuses = (
        client
        if client is not None
        else tuple(map(int, re.findall(rb"^HTTP/1\.1 (\d{3})", played, re.MULTILINE)))
    )
    return Case(name, rule, (ask,), backend, statuses, script=steps, answer=played, methods=methods, cut=cut)


def unusable(
    name: str,
    script: bytes | tuple[Step, ...],
    rule: str,
    status: int = 502,
    *,
    ask: bytes = ASK,
    backend: bytes = ASKED,
    methods: tuple[bytes, ...] = (),
) -> Case:
    """What the backend plays is no answer that may be passed on: the proxy says so itself."""
    steps = (script,) if isinstance(script, bytes) else script
    return Case(name, rule, (ask,), backend, (status,), script=steps, answer=b"", methods=methods)
