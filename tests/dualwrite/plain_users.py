"""Users at both databases who are no superusers and own nothing, and the rights that docs/data.md names."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def granted(page: Path = DOCS, heading: str = "Rights") -> dict[str, str]:
    """The SQL blocks of the page's section, by the name that stands in each one's first line."""
    section = page.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sql\n-- ([^\n]*)\n(.*?)```", section, re.DOTALL)
    assert blocks, f"{page} has no SQL under {heading}"
    return dict(blocks)


def as_user(url: str, user: str) -> str:
    """The URL with another user and its password."""
    return re.sub(r"//[^@]*@", f"//{user}:{user}@", url)


@contextlib.contextmanager
def plain_user(url: str, *blocks: str) -> Iterator[str]:
    """The URL for a new user of this database; `blocks` are said by a superuser.

    In them `crossfade` is the user and `shop_owner` who owns the tables; `shop` is the database.
    """
    mark = uuid.uuid4().hex[:8]
    user, owner = f"crossfade_{mark}", f"shop_owner_{mark}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(owner)))
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), sql.Literal(user))
        )
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname IN ('public', 'shop')"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"ALTER TABLE {table} OWNER TO {owner}")
        for block in blocks:
            said = re.sub(r"\bcrossfade\b", user, block).replace("shop_owner", owner)
            connection.execute(re.sub(r"\bDATABASE shop\b", f"DATABASE {connection.info.dbname}", said))
    try:
        yield as_user(url, user)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", (user,)
            )
            for role in (user, owner):
                connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
                connection.execute(f"DROP OWNED BY {role}")
                connection.execute(f"DROP ROLE {role}")


def in_shop(block: str) -> str:
    """The same for tables that stand in a schema called shop."""
    return block.replace("SCHEMA public", "SCHEMA shop")


def who(url: str) -> tuple[str, str, str]:
    """The user, who owns the tables, and the database."""
    known = psycopg.conninfo.conninfo_to_dict(url)
    user = str(known["user"])
    return user, user.replace("crossfade_", "shop_owner_"), str(known["dbname"])
