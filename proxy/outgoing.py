"""A request's head as a target gets it: the client's bytes, without what ends at this hop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.http import RequestHead, field_values
from proxy.head import without

if TYPE_CHECKING:
    from proxy.forwarding import Peer
    from proxy.pool import Pool

_FRAMING = (b"transfer-encoding:", b"content-length:")


def outgoing_head(head: RequestHead, peer: Peer, pool: Pool) -> bytes:
    """`head`, which came from `peer`, as it is sent to the target of `pool`."""
    cuts = head.cuts
    if head.forwarded is None:
        own = peer.own_fields
    else:
        spans, own = peer.rewrite(head)
        if spans:
            cuts = sorted([*(cuts or ()), *spans])
    if pool.target.host_header is not None or (not head.plain and _is_rewritten(head)):
        return _unusual_head(head, cuts or [], own, pool)
    raw = head.raw
    return (raw[:-2] if cuts is None else without(raw, cuts, len(raw) - 2)) + own + b"\r\n"


def without_framing(start: bytes) -> bytes:
    """The head of a message that has no body, or whose body is framed anew (RFC 9112, 6.1 and 6.2)."""
    lines = start.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(_FRAMING))


def _is_rewritten(head: RequestHead) -> bool:
    """Whether more has to change than cuts and our own fields."""
    return head.upgrade or head.te_trailers or not head.minor or head.target is not None


def _unusual_head(head: RequestHead, cuts: list[tuple[int, int]], own: bytes, pool: Pool) -> bytes:
    """The same for a request whose line or fields are not sent on as they came."""
    raw = head.raw
    fields = without(raw, [(0, head.fields_start), *cuts], len(raw) - 2)
    if head.upgrade:
        own += b"Connection: upgrade\r\n"
    if head.te_trailers:
        own += b"TE: trailers\r\nConnection: TE\r\n"
    host_header = pool.target.host_header
    if not head.minor and not field_values(fields, b"host"):
        fields = b"Host: " + (head.host or pool.authority) + b"\r\n" + fields
    elif host_header is not None:
        fields = _with_host(fields, host_header.encode())
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (head.method, head.sent_target, fields, own)


def _with_host(fields: bytes, host: bytes) -> bytes:
    lines = fields.split(b"\r\n")
    return b"\r\n".join(b"Host: " + host if line.lower().startswith(b"host:") else line for line in lines)
