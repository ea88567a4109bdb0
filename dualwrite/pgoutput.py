"""PostgreSQL's logical replication protocol, read from bytes. No socket, no clock.

Source: PostgreSQL's manual, "Logical Replication Message Formats", version 1: transactions arrive whole,
after their commit. What this version does not know stops the stream: a message that is passed over is a
change that is lost.
"""

from __future__ import annotations

import struct
from typing import Final

from dualwrite.change import (
    ABSENT,
    Change,
    Identity,
    Kind,
    Message,
    Part,
    Relation,
    Row,
    SourceColumn,
    Value,
)

POSTGRES_EPOCH: Final = 946_684_800
"""Unix time of 2000-01-01 UTC, from which the protocol counts microseconds."""

_BEGIN = struct.Struct("!QqI")
_COMMIT = struct.Struct("!BQQq")
_U32 = struct.Struct("!I")
_U16 = struct.Struct("!H")
_I32 = struct.Struct("!i")
_IDENTITIES: Final = {"d": Identity.KEY, "i": Identity.KEY, "f": Identity.FULL, "n": Identity.NOTHING}


class ProtocolError(Exception):
    """The bytes are not what the protocol allows, or something that is not understood here."""


class Decoder:
    """Puts messages together to transactions. One per connection: relations are told anew on each.

    A transaction with more than `most` changes is handed out in parts of that size, so that memory stays
    bounded whatever the source writes.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._relations: dict[int, Relation] = {}
        self._begin: tuple[int, float, int] | None = None
        self._origin: str | None = None
        self._changes: list[Change] = []
        self._messages: list[Message] = []

    def take(self, payload: bytes) -> Part | None:
        """Read one message. A Part if it is the end of one. Raises ProtocolError."""
        try:
            return self._take(payload)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ProtocolError(f"a message of kind {payload[:1]!r} is cut or malformed: {error}") from None

    def _take(self, payload: bytes) -> Part | None:
        kind = payload[:1]
        if kind in {b"I", b"U", b"D", b"T"}:
            if self._begin is None:
                raise ProtocolError(f"a change {kind!r} outside of a transaction")
            if kind == b"T":
                self._truncate(payload)
            else:
                self._changes.append(self._change(kind, payload))
            return self._part(None) if len(self._changes) >= self._most else None
        if kind == b"B":
            if self._begin is not None:
                raise ProtocolError("a transaction begins within another one")
            final, at, xid = _BEGIN.unpack_from(payload, 1)
            self._begin = (xid, at / 1_000_000 + POSTGRES_EPOCH, final)
            self._origin = None
        elif kind == b"C":
            if self._begin is None:
                raise ProtocolError("a commit outside of a transaction")
            _, _, end, _ = _COMMIT.unpack_from(payload, 1)
            part = self._part(end)
            self._begin = None
            return part
        elif kind == b"R":
            self._relation(payload)
        elif kind == b"O":
            self._origin = _text(payload, 9)[0]
        elif kind == b"M":
            return self._message(payload)
        elif kind != b"Y":  # the name of a type: text is read without it
            raise ProtocolError(f"a message of unknown kind {kind!r}")
        return None

    def _part(self, end: int | None) -> Part:
        assert self._begin is not None
        xid, at, final = self._begin
        part = Part(xid, at, final, self._origin, self._changes, self._messages, end)
        self._changes, self._messages = [], []
        return part

    def _relation(self, payload: bytes) -> None:
        (oid,) = _U32.unpack_from(payload, 1)
        schema, at = _text(payload, 5)
        name, at = _text(payload, at)
        identity = _IDENTITIES.get(chr(payload[at]))
        if identity is None:
            raise ProtocolError(f"{schema}.{name} has an unknown replica identity {payload[at : at + 1]!r}")
        (count,) = _U16.unpack_from(payload, at + 1)
        at += 3
        columns = []
        for _ in range(count):
            flags = payload[at]
            column, at = _text(payload, at + 1)
            (type_oid,) = _U32.unpack_from(payload, at)
            at += 8
            columns.append(SourceColumn(column, type_oid, bool(flags & 1)))
        # An empty schema means pg_catalog.
        self._relations[oid] = Relation(schema or "pg_catalog", name, identity, tuple(columns))

    def _change(self, kind: bytes, payload: bytes) -> Change:
        relation = self._known(_U32.unpack_from(payload, 1)[0])
        marker, at = payload[5:6], 6
        old: Row | None = None
        if kind != b"I" and marker in {b"K", b"O"}:
            old, at = _row(payload, at)
            marker, at = payload[at : at + 1], at + 1
        if kind == b"D":
            if old is None:
                raise ProtocolError(f"a deletion of {relation} that does not say of what")
            return Change(Kind.DELETE, relation, old, None)
        if marker != b"N":
            raise ProtocolError(f"a change of {relation} without a new row")
        new, _ = _row(payload, at)
        if len(new) != len(relation.columns):
            raise ProtocolError(f"{relation} has {len(relation.columns)} columns; a row came with {len(new)}")
        return Change(Kind.INSERT if kind == b"I" else Kind.UPDATE, relation, old, new)

    def _truncate(self, payload: bytes) -> None:
        (count,) = _U32.unpack_from(payload, 1)
        for number in range(count):
            relation = self._known(_U32.unpack_from(payload, 6 + 4 * number)[0])
            self._changes.append(Change(Kind.TRUNCATE, relation, None, None))

    def _message(self, payload: bytes) -> Part | None:
        transactional = bool(payload[1] & 1)
        prefix, at = _text(payload, 10)
        (length,) = _U32.unpack_from(payload, at)
        content = payload[at + 4 : at + 4 + length]
        if len(content) != length:
            raise IndexError("the content is cut")
        message = Message(prefix, content, transactional)
        if self._begin is not None:
            self._messages.append(message)
            return None
        # Not of a transaction: it stands for itself, and moves nothing on.
        return Part(0, 0.0, 0, None, [], [message], None)

    def _known(self, oid: int) -> Relation:
        relation = self._relations.get(oid)
        if relation is None:
            raise ProtocolError(f"a change of a table (oid {oid}) that was never described")
        return relation


def _row(payload: bytes, at: int) -> tuple[Row, int]:
    (count,) = _U16.unpack_from(payload, at)
    at += 2
    values: list[Value] = []
    append, length_at = values.append, _U32.unpack_from
    for _ in range(count):
        kind = payload[at]
        if kind == 0x74:  # t: text
            start = at + 5
            at = start + length_at(payload, at + 1)[0]
            append(payload[start:at])
        elif kind == 0x6E:  # n: NULL
            append(None)
            at += 1
        elif kind == 0x75:  # u: unchanged, and not sent
            append(ABSENT)
            at += 1
        else:
            raise ProtocolError(f"a value of unknown kind {payload[at : at + 1]!r}")
    if at > len(payload):
        raise IndexError("a value is cut")
    return tuple(values), at


def _text(payload: bytes, at: int) -> tuple[str, int]:
    end = payload.find(b"\0", at)
    if end < 0:
        raise IndexError("a name does not end")
    return payload[at:end].decode(), end + 1
