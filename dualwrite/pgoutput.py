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

_INSERT, _UPDATE, _DELETE, _TRUNCATE = b"IUDT"
_BEGIN, _COMMIT, _RELATION, _ORIGIN, _MESSAGE, _TYPE = b"BCROMY"
_ROWS = frozenset((_INSERT, _UPDATE, _DELETE))
_OLD, _NEW = b"KO", ord("N")
"""What stands before a row."""
_MADE, _CHANGED = Kind.INSERT, Kind.UPDATE
_new = tuple.__new__
"""A named tuple is made in half the time without its own `__new__`; here one is made for every change."""

_BEGIN_FIELDS = struct.Struct("!QqI")
_COMMIT_FIELDS = struct.Struct("!BQQq")
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
        self._begin: tuple[int, int, int] | None = None
        """Of the transaction: where its commit is, when it was (microseconds), its number."""
        self._origin: str | None = None
        self._changes: list[Change] = []
        self._messages: list[Message] = []

    def take(self, data: bytes, at: int = 0) -> Part | None:
        """Read the one message that begins at `at`. A Part if it is the end of one. Raises ProtocolError."""
        try:
            return self._take(data, at)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            kind = data[at : at + 1]
            raise ProtocolError(f"a message of kind {kind!r} is cut or malformed: {error}") from None

    def _take(self, data: bytes, at: int) -> Part | None:
        kind = data[at]
        if kind in _ROWS:
            changes = self._changes
            changes.append(self._change(kind, data, at))
            return self._part(None) if len(changes) >= self._most else None
        if kind == _BEGIN:
            if self._begin is not None:
                raise ProtocolError("a transaction begins within another one")
            self._begin = _BEGIN_FIELDS.unpack_from(data, at + 1)
            self._origin = None
        elif kind == _COMMIT:
            if self._begin is None:
                raise ProtocolError("a commit outside of a transaction")
            part = self._part(_COMMIT_FIELDS.unpack_from(data, at + 1)[2])
            self._begin = None
            return part
        elif kind == _RELATION:
            self._relation(data, at)
        elif kind == _ORIGIN:
            self._origin = _text(data, at + 9)[0]
        elif kind == _MESSAGE:
            return self._message(data, at)
        elif kind == _TRUNCATE:
            self._truncate(data, at)
            return self._part(None) if len(self._changes) >= self._most else None
        elif kind != _TYPE:  # the name of a type: text is read without it
            raise ProtocolError(f"a message of unknown kind {data[at : at + 1]!r}")
        return None

    def _part(self, end: int | None) -> Part:
        assert self._begin is not None
        final, at, xid = self._begin
        when = at / 1_000_000 + POSTGRES_EPOCH
        part = _new(Part, (xid, when, final, self._origin, self._changes, self._messages, end))
        self._changes, self._messages = [], []
        return part

    def _relation(self, payload: bytes, at: int) -> None:
        (oid,) = _U32.unpack_from(payload, at + 1)
        schema, at = _text(payload, at + 5)
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

    def _change(self, kind: int, data: bytes, at: int) -> Change:
        if self._begin is None:
            raise ProtocolError(f"a change {data[at : at + 1]!r} outside of a transaction")
        relation = self._known(_U32.unpack_from(data, at + 1)[0])
        marker, at = data[at + 5], at + 6
        old: Row | None = None
        if kind != _INSERT and marker in _OLD:
            old, at = _row(data, at)
            if kind == _DELETE:
                return _new(Change, (Kind.DELETE, relation, old, None))
            marker, at = data[at], at + 1
        if kind == _DELETE:
            raise ProtocolError(f"a deletion of {relation} that does not say of what")
        if marker != _NEW:
            raise ProtocolError(f"a change of {relation} without a new row")
        new, _ = _row(data, at)
        if len(new) != len(relation.columns):
            raise ProtocolError(f"{relation} has {len(relation.columns)} columns; a row came with {len(new)}")
        return _new(Change, (_MADE if kind == _INSERT else _CHANGED, relation, old, new))

    def _truncate(self, payload: bytes, at: int) -> None:
        if self._begin is None:
            raise ProtocolError("a TRUNCATE outside of a transaction")
        (count,) = _U32.unpack_from(payload, at + 1)
        for number in range(count):
            relation = self._known(_U32.unpack_from(payload, at + 6 + 4 * number)[0])
            self._changes.append(Change(Kind.TRUNCATE, relation, None, None))

    def _message(self, payload: bytes, at: int) -> Part | None:
        transactional = bool(payload[at + 1] & 1)
        prefix, at = _text(payload, at + 10)
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
    count = payload[at] << 8 | payload[at + 1]
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
