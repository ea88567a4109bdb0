"""Tokens: shown once, kept as a hash, worth nothing once revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest

from crossfade.store.actors import Actor, ActorType, DeniedError, Role, Via
from crossfade.store.store import Store
from flags.change import Refused

ROOT = Actor(ActorType.LOCAL, "local", Role.ADMIN, None, Via.CLI)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = await Store.open(store_url)
    yield opened
    await opened.close()


@pytest.mark.parametrize("role", Role)
async def test_a_token_is_its_person_until_it_is_revoked(store: Store, role: Role) -> None:
    token = await store.issue_token(ROOT, "ada", role, reason="joins")
    actor = await store.authenticate(token, via=Via.CLI, address="192.0.2.1")
    assert actor == Actor(ActorType.HUMAN, "ada", role, "192.0.2.1", Via.CLI)
    (person,) = await store.people()
    assert (person.name, person.role, person.revoked_at) == ("ada", role, None)
    assert person.last_used is not None

    await store.revoke_token(ROOT, "ada", reason="leaves")
    assert await store.authenticate(token) is None
    again = await store.issue_token(ROOT, "ada", Role.VIEWER, reason="comes back")
    assert again != token
    assert await store.authenticate(token) is None
    actor = await store.authenticate(again)
    assert actor is not None
    assert actor.role is Role.VIEWER
    assert [person.revoked_at is None for person in await store.people()] == [False, True]
    assert [row.action for row in await store.audit_tail()] == ["person.add", "person.revoke", "person.add"]


async def test_no_token_is_written_anywhere(store: Store, store_url: str) -> None:
    token = await store.issue_token(ROOT, "ada", Role.ADMIN, reason="joins")
    assert token.startswith("cf_")
    with psycopg.connect(store_url) as connection:
        for table in ("people", "audit", "flag_set", "instances"):
            rows = connection.execute(f"SELECT t::text FROM crossfade_store.{table} t").fetchall()
            assert token not in str(rows)
            assert token.removeprefix("cf_").encode().hex() not in str(rows)


async def test_its_use_is_written_down_once_a_minute(store: Store, store_url: str) -> None:
    token = await store.issue_token(ROOT, "ada", Role.VIEWER, reason="joins")
    await store.authenticate(token)
    first = (await store.people())[0].last_used
    await store.authenticate(token)
    assert (await store.people())[0].last_used == first
    with psycopg.connect(store_url) as connection:
        connection.execute("UPDATE crossfade_store.people SET last_used = last_used - interval '61 s'")
    await store.authenticate(token)
    later = (await store.people())[0].last_used
    assert first is not None
    assert later is not None
    assert later > first


async def test_what_is_no_token_is_nobody(store: Store) -> None:
    for token in ("", "cf_", "cf_" + "a" * 43, "cf_" + "ä" * 43, "cf_\ud800", "x" * 10_000, "\0"):
        assert await store.authenticate(token) is None


async def test_only_an_admin_issues_and_revokes(store: Store) -> None:
    await store.issue_token(ROOT, "ada", Role.VIEWER, reason="joins")
    for role in list(Role)[:-1]:
        somebody = replace(ROOT, type=ActorType.HUMAN, name="eve", role=role)
        with pytest.raises(DeniedError, match="needs the role admin"):
            await store.issue_token(somebody, "eve2", Role.ADMIN, reason="me too")
        with pytest.raises(DeniedError):
            await store.revoke_token(somebody, "ada", reason="away")
    assert [person.name for person in await store.people()] == ["ada"]
    assert [row.outcome for row in await store.audit_tail()] == ["applied"] + ["denied"] * 8


async def test_a_person_has_one_token(store: Store, store_url: str) -> None:
    other = await Store.open(store_url)
    outcomes = await asyncio.gather(
        *(which.issue_token(ROOT, "ada", Role.VIEWER, reason="joins") for which in (store, other)),
        return_exceptions=True,
    )
    (lost,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert isinstance(lost, Refused)
    assert lost.kind == "conflict"
    assert "crossfade person revoke ada" in str(lost)
    await other.close()


async def test_names_and_reasons_are_readable(store: Store) -> None:
    names = ["", " ada", "a" * 64, "a\nb", "\0", "\ud800", "a;b"]
    for name in names:
        with pytest.raises(Refused, match="cannot be a person's name"):
            await store.issue_token(ROOT, name, Role.VIEWER, reason="joins")
        with pytest.raises(Refused, match="has a valid token") as caught:
            await store.revoke_token(ROOT, name, reason="leaves")
        assert caught.value.kind == "not_found"
    with pytest.raises(Refused, match="needs a reason"):
        await store.issue_token(ROOT, "ada", Role.VIEWER, reason=" ")
    assert await store.people() == []
    assert [row.outcome for row in await store.audit_tail()] == ["rejected"] * (2 * len(names) + 1)
