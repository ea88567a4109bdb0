"""The words in which users say how rows of one side become rows of the other (`docs/data.md`). Pure.

Values are text, as PostgreSQL writes it (`'2026-03-29 02:30:00'`, `'t'`, `'\\x6162'`), or None for NULL. What
a function returns may also be a number, a truth value, a moment, a UUID or bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from flags.model import Side

Text: TypeAlias = str | None
Function: TypeAlias = Callable[[Text], Any]


class InvalidMappingError(ValueError):
    """What `migration.py` says of a table cannot be meant; the text says why."""


@dataclass(frozen=True, slots=True)
class Convert:
    """A column whose values are written differently. Without `to_legacy` there is no way back for it."""

    new: str
    """Its name in the new database."""
    to_new: Function
    to_legacy: Function | None = None


@dataclass(frozen=True, slots=True)
class Values:
    """A column with a few known values: legacy's to new's. Where two become one, the first is the way back.

    A value that is not named stops the table.
    """

    new: str
    values: Mapping[Text, Text]


@dataclass(frozen=True, slots=True)
class Marked:
    """Rows in legacy are not deleted but marked: one that bears `gone` in `column` does not exist in new."""

    column: str
    alive: str
    gone: str


@dataclass(frozen=True, slots=True)
class Only:
    """A filter: of legacy's rows only those with `value` in `column` are rows of new.

    A row that gets or loses the value comes or goes in new. On the way back it is written into every row.
    Where several mappings share legacy's table, keys of new's must never meet there: give them one sequence.
    """

    column: str
    value: str


Column: TypeAlias = str | Convert | Values
"""The column's name in the new database, or that with what becomes of its values."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one table in legacy and rows of one in new, which stand for the same things.

    Several of these may name the same table of a side: so one table becomes two, or two become one.
    """

    legacy: str
    """`table`, or `schema.table`."""
    new: str
    key: Sequence[str]
    """The columns in legacy by which a row is known; on both sides a unique index must be on them."""
    columns: Mapping[str, Column] | Sequence[str]
    """By their names in legacy; a plain list says that both sides name them alike."""
    legacy_only: Sequence[str] = ()
    """Columns of legacy that have no place in new, and are left alone."""
    new_only: Sequence[str] = ()
    marked: Marked | None = None
    only: Only | None = None
    part_of: Side | None = None
    """Rows of this side are made and deleted by another mapping; this one fills some of their columns."""
    computed: Mapping[Side, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Columns that are computed where they are written, by an SQL expression over the row `given`."""
    towards: Side | None = None
    """Copied only that way; None: both ways."""
    on_poison: Literal["stop", "quarantine"] = "stop"
    """What becomes of a row that the other side does not take, or that a function fails on: the stream stops,
    or the row waits in quarantine, with all later changes of its key, and the others go on."""

    def __post_init__(self) -> None:
        columns = self.pairs
        if missing := [name for name in self.key if name not in columns]:
            raise InvalidMappingError(f"{self}: the key names {missing[0]}, which is no column of it")
        if not self.key:
            raise InvalidMappingError(f"{self}: expected key = the columns by which a row is known")
        names = [name_in_new(one) for one in columns.values()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InvalidMappingError(f"{self}: two columns become {twice[0]}")
        if self.on_poison not in ("stop", "quarantine"):
            raise InvalidMappingError(f"{self}: on_poison is {self.on_poison!r}, not 'stop' or 'quarantine'")
        if self.marked is not None and self.marked.column in columns:
            raise InvalidMappingError(f"{self}: {self.marked.column} marks rows, and can be no column of new")
        if self.only is not None and self.only.column in columns:
            raise InvalidMappingError(
                f"{self}: {self.only.column} says the same of all its rows; leave it out"
            )
        if self.only is not None and (self.marked is not None or self.part_of is not None):
            raise InvalidMappingError(f"{self}: only goes neither with marked nor with part_of")

    @property
    def pairs(self) -> Mapping[str, Column]:
        return self.columns if isinstance(self.columns, Mapping) else {name: name for name in self.columns}

    def name_on(self, side: Side) -> str:
        return qualified_name(self.legacy if side is Side.LEGACY else self.new)

    def __str__(self) -> str:
        return f"{self.legacy} to {self.new}"


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What has to be done on one side when rows of a table of the other one have changed.

    `sql` runs in the transaction that writes the rows, after all of them. `{touched}` stands for a table with
    the changed rows, each once: `key` and `inputs` as text, and `gone`, which is true of rows that are no
    more (of these only the key is there). It must do no harm to run it twice, and it runs for all rows of a
    backfill.
    """

    table: str
    on: Side
    key: Sequence[str]
    """By which a row of the table is known."""
    inputs: Sequence[str]
    """Other columns that the SQL looks at."""
    sql: str | Sequence[str]

    @property
    def statements(self) -> tuple[str, ...]:
        return (self.sql,) if isinstance(self.sql, str) else tuple(self.sql)

    def __post_init__(self) -> None:
        if not any("{touched}" in one for one in self.statements):
            raise InvalidMappingError(f"the follow-up of {self.table} never looks at {{touched}}")


def name_in_new(column: Column) -> str:
    return column if isinstance(column, str) else column.new


def qualified_name(name: str) -> str:
    return name if "." in name else f"public.{name}"
