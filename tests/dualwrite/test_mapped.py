"""Users' mappings, both ways, value by value."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualwrite.change import ABSENT, Change, Identity, Kind, Relation, Row, SourceColumn
from dualwrite.copy_text import copy_text, read_copy_text
from dualwrite.mapped import Mapped, MappingFailedError, SourceTable, touched_rows, towards
from dualwrite.mapping import Convert, FollowUp, InvalidMappingError, Marked, Only, Table, Values
from dualwrite.plan import Action, ContradictionError, Copying, Op, steps
from flags.model import Side

PEOPLE = Table(
    "people",
    "app.persons",
    key=["id"],
    columns={
        "id": "person_id",
        "name": Convert("name", lambda text: text and text.upper(), lambda text: text and text.lower()),
        "level": Values("role", {"0": "member", "9": "admin", None: "member"}),
    },
    legacy_only=["old"],
    marked=Marked("gone", alive="N", gone="Y"),
)
PURSES = Table(
    "people",
    "app.purses",
    key=["id"],
    columns={"id": "owner", "cents": "cents"},
    marked=Marked("gone", alive="N", gone="Y"),
    part_of=Side.LEGACY,
)
FORTH = towards(Side.NEW, [PEOPLE, PURSES], [])
BACK = towards(Side.LEGACY, [PEOPLE, PURSES], [])


def relation(*names: str, table: str = "public.people", identity: Identity = Identity.KEY) -> Relation:
    schema, _, name = table.partition(".")
    columns = tuple(SourceColumn(one, 25, at == 0) for at, one in enumerate(names))
    return Relation(schema, name, identity, columns)


LEGACY = relation("id", "name", "level", "cents", "gone", "old")
PERSONS = relation("person_id", "name", "role", table="app.persons")


def of(source: SourceTable, number: int, change: Change) -> list[Op]:
    return list(source.mappings[number].bind(change.relation)(change))


def told(ops: list[Op]) -> list[tuple[Any, ...]]:
    return [(op.action, op.key, op.row) for op in ops]


def update(new: Row, old: Row | None = None, of_: Relation = LEGACY) -> Change:
    return Change(Kind.UPDATE, of_, old, new)


ADA = (b"1", b"ada", b"9", b"50", b"N", b"x")


def test_one_row_becomes_two() -> None:
    people = FORTH["public.people"]
    assert told(of(people, 0, update(ADA))) == [(Action.PUT, (b"1",), (b"1", b"ADA", b"admin"))]
    assert told(of(people, 1, update(ADA))) == [(Action.PUT, (b"1",), (b"1", b"50"))]


def test_two_rows_become_one_again() -> None:
    person = Change(Kind.INSERT, PERSONS, None, (b"1", b"ADA", b"member"))
    assert told(of(BACK["app.persons"], 0, person)) == [(Action.ADD, (b"1",), (b"1", b"ada", b"0", b"N"))]
    purse = Change(Kind.INSERT, relation("owner", "cents", table="app.purses"), None, (b"1", b"7"))
    assert told(of(BACK["app.purses"], 0, purse)) == [(Action.PATCH, (b"1",), (b"1", b"7"))]
    (step,) = steps(of(BACK["app.purses"], 0, purse))
    assert (step.works[0].puts, step.works[0].patches) == ([], [(b"1", b"7")])
    gone = Change(Kind.DELETE, purse.relation, (b"1", ABSENT), None)
    assert of(BACK["app.purses"], 0, gone) == []


def test_a_marked_row_is_a_deleted_one_and_the_other_way_round() -> None:
    people = FORTH["public.people"]
    marked = (*ADA[:4], b"Y", b"x")
    assert told(of(people, 0, update(marked))) == [(Action.REMOVE, (b"1",), ())]
    gone = Change(Kind.DELETE, PERSONS, (b"1", ABSENT, ABSENT), None)
    assert told(of(BACK["app.persons"], 0, gone)) == [(Action.PATCH, (b"1",), (b"1", ABSENT, ABSENT, b"Y"))]


def test_what_was_not_sent_stays_as_it_is() -> None:
    partly = update((b"1", ABSENT, b"0", b"5", b"N", b"x"))
    assert told(of(FORTH["public.people"], 0, partly)) == [(Action.PATCH, (b"1",), (b"1", ABSENT, b"member"))]
    with pytest.raises(ContradictionError, match="without what marks it"):
        of(FORTH["public.people"], 0, update((*ADA[:4], ABSENT, b"x")))


def test_a_function_is_not_asked_about_what_was_not_sent_and_its_last_word_holds() -> None:
    """The column's value is what the last change that carried it became, or what the target has."""
    people = FORTH["public.people"]
    without_name = (b"1", ABSENT, b"0", b"5", b"N", b"x")
    made = Change(Kind.INSERT, LEGACY, None, ADA)
    (step,) = steps([*of(people, 0, made), *of(people, 0, update(without_name))])
    assert step.works[0].adds == [(b"1", b"ADA", b"member")]
    told_name = update((b"1", b"bea", b"9", b"5", b"N", b"x"))
    (step,) = steps([*of(people, 0, update(without_name)), *of(people, 0, update(without_name))])
    assert step.works[0].patches == [(b"1", ABSENT, b"member")]
    (step,) = steps([*of(people, 0, update(without_name)), *of(people, 0, told_name)])
    assert step.works[0].puts == [(b"1", b"BEA", b"admin")]
    # With the whole old row the source has said it after all.
    whole = relation(*LEGACY.names, identity=Identity.FULL)
    said = Change(Kind.UPDATE, whole, ADA, without_name)
    assert told(of(people, 0, said)) == [(Action.PUT, (b"1",), (b"1", b"ADA", b"member"))]


def test_another_key_takes_the_old_row_away() -> None:
    moved = update((b"2", *ADA[1:]), (b"1", *[ABSENT] * 5))
    assert told(of(FORTH["public.people"], 0, moved)) == [
        (Action.REMOVE, (b"1",), ()), (Action.PUT, (b"2",), (b"2", b"ADA", b"admin")),
    ]  # fmt: skip


def test_truncate_is_passed_on_where_rows_go_and_refused_where_they_are_marked() -> None:
    assert told(of(FORTH["public.people"], 0, Change(Kind.TRUNCATE, LEGACY, None, None))) == [
        (Action.EMPTY, (), ())
    ]
    with pytest.raises(ContradictionError, match="TRUNCATE"):
        of(BACK["app.persons"], 0, Change(Kind.TRUNCATE, PERSONS, None, None))


@pytest.mark.parametrize(("function", "says"), [
    (lambda text: text.nothing, "AttributeError"), (lambda _: object(), "returned a object"),
    (lambda _: "a\0b", "NUL"),
])  # fmt: skip
def test_a_function_that_fails_stops_with_place_and_value(function: Any, says: str) -> None:
    table = Table("t", "t", key=["id"], columns={"id": "id", "v": Convert("v", function)}, towards=Side.NEW)
    (source,) = towards(Side.NEW, [table], []).values()
    with pytest.raises(MappingFailedError, match=rf"v to public\.t\.v: 'ada'.*{says}"):
        of(source, 0, Change(Kind.INSERT, relation("id", "v", table="public.t"), None, (b"1", b"ada")))


def test_values_that_are_not_named_stop_it() -> None:
    with pytest.raises(MappingFailedError, match=r"level to app.persons.role: '3'.*not named in Values"):
        of(FORTH["public.people"], 0, update((b"1", b"ada", b"3", b"0", b"N", b"x")))


@pytest.mark.parametrize(("found", "written"), [
    (True, b"t"), (7, b"7"), (b"\x00\xff", b"\\x00ff"), (None, None), ("ä", "ä".encode()),
    (datetime(2026, 1, 2, 3, tzinfo=UTC), b"2026-01-02 03:00:00+00:00"),
])  # fmt: skip
def test_what_a_function_returns_is_written_as_postgresql_reads_it(found: Any, written: Any) -> None:
    table = Table("t", "t", ["id"], {"id": "id", "v": Convert("v", lambda _: found)}, towards=Side.NEW)
    (source,) = towards(Side.NEW, [table], []).values()
    change = Change(Kind.INSERT, relation("id", "v", table="public.t"), None, (b"1", b""))
    assert of(source, 0, change)[0].row == (b"1", written)


def test_same_names_and_values_are_copied_without_a_look() -> None:
    (source,) = towards(Side.NEW, [Table("t", "t", key=["id"], columns=["id", "v"])], []).values()
    assert isinstance(source.mappings[0], Copying)


@pytest.mark.parametrize(("more", "says"), [
    ({"key": ["x"]}, "the key names x"), ({"key": []}, "expected key"),
    ({"columns": {"id": "id", "a": "v", "b": "v"}}, "two columns become v"),
    ({"marked": Marked("v", "N", "Y")}, "v marks rows"), ({"only": Only("v", "x")}, "v says the same"),
    ({"only": Only("w", "x"), "marked": Marked("u", "N", "Y")}, "only goes neither"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidMappingError, match=says):
        Table(**{"legacy": "t", "new": "t", "key": ["id"], "columns": ["id", "v"], **more})


def test_a_column_without_a_way_back_is_refused_only_on_the_way_back() -> None:
    table = Table("t", "t", key=["id"], columns={"id": "id", "v": Convert("v", str)})
    assert towards(Side.NEW, [table], [])
    with pytest.raises(InvalidMappingError, match="not back; give it to_legacy"):
        towards(Side.LEGACY, [table], [])


def test_columns_that_nobody_has_named_are_told() -> None:
    mapping = FORTH["public.people"].mappings[0]
    assert mapping.trouble(LEGACY) is None
    assert mapping.trouble(relation(*LEGACY.names, "more")) == (
        "column_unknown", "public.people has a column more that no mapping names",
    )  # fmt: skip
    assert (mapping.trouble(relation("id", "name", "gone")) or ("",))[0] == "column_gone"


def test_a_follow_up_sees_each_row_once_and_of_one_that_went_only_its_key() -> None:
    after = FollowUp("people", Side.NEW, ["id"], ["name"], "DELETE FROM x USING {touched}")
    (source,) = towards(Side.NEW, [], [after]).values()
    (touching,) = source.touching
    look = touching.bind(LEGACY)
    moved = update((b"2", *ADA[1:]), (b"1", *[ABSENT] * 5))
    rows = [*look(update(ADA)), *look(moved), *look(update((b"2", b"bea", *ADA[2:])))]
    assert sorted(touched_rows(touching, rows)) == [(b"1", None, b"t"), (b"2", b"bea", b"f")]
    with pytest.raises(ContradictionError, match=r"without name.*REPLICA IDENTITY FULL"):
        look(update((b"1", ABSENT, *ADA[2:])))
    with pytest.raises(InvalidMappingError, match="never looks"):
        FollowUp("people", Side.NEW, ["id"], [], "SELECT 1")


TEXT = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(str.encode)


@given(st.lists(TEXT, min_size=1, max_size=4).map(tuple))
def test_lines_of_copy_are_read_as_they_were_written(row: tuple[bytes | None, ...]) -> None:
    assert read_copy_text(copy_text([row])) == row


@given(st.text(st.characters(codec="ascii", categories=("Ll",))), st.sampled_from(["0", "9"]))
def test_there_and_back_again(name: str, level: str) -> None:
    row = (b"1", name.encode(), level.encode(), b"5", b"N", b"")
    (put,) = of(FORTH["public.people"], 0, update(row))
    (back,) = of(BACK["app.persons"], 0, Change(Kind.INSERT, PERSONS, None, put.row))
    assert back.row[:3] == row[:3]
    mapping = FORTH["public.people"].mappings[0]
    assert isinstance(mapping, Mapped)
    assert mapping.lines([copy_text([(*row[:3], b"Y")]), copy_text([(*row[:3], b"N")])]) == [
        copy_text([put.row])
    ]
