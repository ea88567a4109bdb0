"""The protocol, byte by byte: what a server would write, read again."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualwrite.change import ABSENT, Change, Identity, Kind, Part, Relation, Row, SourceColumn
from dualwrite.pgoutput import POSTGRES_EPOCH, Decoder, ProtocolError

OID = 16_384


def begin(xid: int = 7, at: int = 0) -> bytes:
    return b"B" + struct.pack("!QqI", 90, at, xid)


def commit(end: int) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, 90, end, 0)


def described(relation: Relation, oid: int = OID) -> bytes:
    letter = {Identity.KEY: b"d", Identity.FULL: b"f", Identity.NOTHING: b"n"}[relation.identity]
    found = b"R" + struct.pack("!I", oid) + _text(relation.schema) + _text(relation.name) + letter
    found += struct.pack("!H", len(relation.columns))
    for column in relation.columns:
        found += bytes([column.in_identity]) + _text(column.name) + struct.pack("!Ii", column.type_oid, -1)
    return found


def written(change: Change, oid: int = OID, full: bool = False) -> bytes:
    head = struct.pack("!I", oid)
    if change.kind is Kind.TRUNCATE:
        return b"T" + struct.pack("!IB", 1, 0) + head
    old = b"" if change.old is None else (b"O" if full else b"K") + row(change.old)
    new = b"" if change.new is None else b"N" + row(change.new)
    return {Kind.INSERT: b"I", Kind.UPDATE: b"U", Kind.DELETE: b"D"}[change.kind] + head + old + new


def row(values: Row) -> bytes:
    found = struct.pack("!H", len(values))
    for value in values:
        if value is None:
            found += b"n"
        elif value is ABSENT:
            found += b"u"
        else:
            assert isinstance(value, bytes)
            found += b"t" + struct.pack("!i", len(value)) + value
    return found


def message(prefix: str, content: bytes, transactional: bool) -> bytes:
    flags = struct.pack("!BQ", transactional, 5)
    return b"M" + flags + _text(prefix) + struct.pack("!I", len(content)) + content


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
values = st.one_of(st.none(), st.just(ABSENT), st.binary(max_size=50))


@st.composite
def relations(draw: st.DrawFn) -> Relation:
    columns = draw(
        st.lists(st.builds(SourceColumn, names, st.integers(1, 2**32 - 1), st.booleans()), max_size=6)
    )
    return Relation(draw(names), draw(names), draw(st.sampled_from(Identity)), tuple(columns))


@st.composite
def changes(draw: st.DrawFn, relation: Relation) -> Change:
    kind = draw(st.sampled_from(Kind))
    rows = st.tuples(*(values for _ in relation.columns))
    old = draw(rows) if kind is Kind.DELETE or (kind is Kind.UPDATE and draw(st.booleans())) else None
    new = draw(rows) if kind in {Kind.INSERT, Kind.UPDATE} else None
    return Change(kind, relation, old, new)


@given(st.data())
def test_what_was_written_is_read(data: st.DataObject) -> None:
    relation = data.draw(relations())
    made = data.draw(st.lists(changes(relation), max_size=5))
    full = relation.identity is Identity.FULL
    decoder = Decoder()
    for payload in (begin(12, 3_000_000), described(relation), *(written(one, full=full) for one in made)):
        assert decoder.take(payload) is None
    assert decoder.take(commit(1234)) == Part(12, POSTGRES_EPOCH + 3, 90, None, made, [], 1234)


@given(st.data())
def test_a_cut_or_garbled_message_never_passes_for_another(data: st.DataObject) -> None:
    relation = data.draw(relations().filter(lambda one: len(one.columns) > 0))
    change = data.draw(changes(relation).filter(lambda one: one.kind is not Kind.TRUNCATE))
    payload = written(change, full=relation.identity is Identity.FULL)
    cut = payload[: data.draw(st.integers(1, len(payload) - 1))]
    decoder = Decoder()
    decoder.take(begin())
    decoder.take(described(relation))
    with pytest.raises(ProtocolError):
        decoder.take(cut)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    decoder = Decoder()
    decoder.take(begin())
    with contextlib.suppress(ProtocolError):
        decoder.take(payload)


NOTES = Relation(
    "public", "notes", Identity.KEY, (SourceColumn("id", 23, True), SourceColumn("t", 25, False))
)


def test_a_large_transaction_comes_in_parts_and_only_the_last_one_ends_it() -> None:
    decoder = Decoder(most=3)
    decoder.take(begin(9))
    decoder.take(described(NOTES))
    inserts = [Change(Kind.INSERT, NOTES, None, (b"%d" % n, b"x")) for n in range(7)]
    parts = [part for one in inserts if (part := decoder.take(written(one))) is not None]
    last = decoder.take(commit(55))
    assert last is not None
    assert [len(part.changes) for part in parts] == [3, 3]
    assert [part.end for part in (*parts, last)] == [None, None, 55]
    assert {part.xid for part in (*parts, last)} == {9}
    assert [change for part in (*parts, last) for change in part.changes] == inserts


def test_the_origin_belongs_to_its_transaction_alone() -> None:
    decoder = Decoder()
    decoder.take(begin())
    decoder.take(b"O" + struct.pack("!Q", 1) + b"crossfade_forward\0")
    first = decoder.take(commit(1))
    decoder.take(begin())
    second = decoder.take(commit(2))
    assert first is not None
    assert second is not None
    assert (first.origin, second.origin) == ("crossfade_forward", None)


def test_messages_are_part_of_their_transaction_or_stand_for_themselves() -> None:
    decoder = Decoder()
    alone = decoder.take(message("a", b"1", transactional=False))
    assert alone is not None
    assert (alone.end, alone.messages[0].content) == (None, b"1")
    decoder.take(begin())
    assert decoder.take(message("b", b"2", transactional=True)) is None
    part = decoder.take(commit(3))
    assert part is not None
    assert [(one.prefix, one.content, one.transactional) for one in part.messages] == [("b", b"2", True)]


@pytest.mark.parametrize(
    ("payloads", "says"),
    [
        ([b"S" + bytes(8)], "unknown kind"),
        ([commit(1)], "outside of a transaction"),
        ([begin(), begin()], "within another"),
        ([written(Change(Kind.INSERT, NOTES, None, (b"1", b"x")))], "outside of a transaction"),
        ([begin(), written(Change(Kind.INSERT, NOTES, None, (b"1", b"x")))], "never described"),
        ([begin(), described(NOTES), written(Change(Kind.INSERT, NOTES, None, (b"1",)))], "2 columns"),
        ([begin(), described(NOTES), b"I" + struct.pack("!I", OID) + b"N\0\1b\0\0\0\0"], "unknown kind b'b'"),
    ],
)
def test_what_is_not_understood_is_refused(payloads: list[bytes], says: str) -> None:
    decoder = Decoder()

    def read() -> Any:
        for payload in payloads:
            decoder.take(payload)

    with pytest.raises(ProtocolError, match=says):
        read()
