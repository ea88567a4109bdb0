"""The answers that Crossfade gives itself.

Short, in its own words, without a byte of the request in it. `Proxy-Status` (RFC 9209) carries the
reason for machines; the same word stands in metrics and logs.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REGISTERED = frozenset(
    {
        "dns_error", "destination_unavailable", "connection_timeout", "connection_refused",
        "connection_terminated", "connection_limit_reached", "connection_read_timeout",
        "connection_write_timeout", "http_response_timeout", "http_response_incomplete",
        "tls_certificate_error", "tls_protocol_error", "proxy_internal_error", "http_upgrade_failed",
    }
)  # fmt: skip
"""Error types of RFC 9209, 2.3 that we use as they are."""

_ALLOWED = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"


def own_answer(
    status: int, reason: str, *, now: float, head_only: bool, close: bool, more: bytes = b""
) -> bytes:
    """The whole answer as bytes; `now` is seconds since the epoch, `more` are further field lines."""
    phrase = HTTPStatus(status).phrase
    body = f"{status} {phrase}\ncrossfade: {reason}\n".encode()
    if reason in _REGISTERED:
        proxy_status = f"crossfade; error={reason}"
    else:
        error = "http_request_error" if status < 500 or status in (501, 505) else "http_protocol_error"
        proxy_status = f'crossfade; error={error}; details="{reason}"'
    lines = (
        f"HTTP/1.1 {status} {phrase}\r\n"
        f"Date: {formatdate(now, usegmt=True)}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Proxy-Status: {proxy_status}\r\n"
    ).encode()
    if status == 503:
        lines += b"Retry-After: 1\r\n"
    elif status == 405:
        lines += _ALLOWED
    if close:
        lines += b"Connection: close\r\n"
    return lines + more + b"\r\n" + (b"" if head_only else body)
