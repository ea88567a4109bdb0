"""What belongs to the new service alone: its schema, its document, its permissions, its queries."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from sqlalchemy.dialects import postgresql
from werkzeug.security import check_password_hash, generate_password_hash

from new_backend import passwords, schema
from new_backend.app import build_app
from new_backend.database import create_engine, driver_url
from new_backend.openapi import describe
from new_backend.operations import Database
from new_backend.permissions import Actor, Role, may_edit, may_remove
from new_backend.posts import COMMENTS, POSTS
from new_backend.routes import OPERATIONS
from new_backend.tables import comments, metadata, posts
from tests.sample.backends import PASSWORD, Backend, command, person
from tests.sample.test_process import run_and_fail

only_new = pytest.mark.parametrize("backend", ["new"], indirect=True)


# The schema


def test_revisions_lead_up_to_the_tables_and_down_to_nothing(database_url: str) -> None:
    engine = sqlalchemy.create_engine(driver_url(database_url), poolclass=sqlalchemy.NullPool)
    schema.upgrade(database_url)
    with engine.connect() as db:
        assert schema.current(db) == schema.newest()
        context = MigrationContext.configure(db, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert check_constraints(db) == declared_checks()
    schema.downgrade(database_url, "base")
    with engine.connect() as db:
        assert sqlalchemy.inspect(db).get_table_names() == ["alembic_version"]
        assert schema.current(db) is None
    schema.upgrade(database_url)


def test_each_revision_can_be_taken_back_and_applied_again(database_url: str) -> None:
    engine = sqlalchemy.create_engine(driver_url(database_url), poolclass=sqlalchemy.NullPool)
    for revision, earlier in (("0001", "base"), ("0002", "0001"), ("0003", "0002")):
        schema.upgrade(database_url, revision)
        schema.downgrade(database_url, earlier)
        schema.upgrade(database_url, revision)
        with engine.connect() as db:
            assert schema.current(db) == revision


def test_accounts_from_before_the_wallets_get_one(database_url: str) -> None:
    engine = sqlalchemy.create_engine(driver_url(database_url), poolclass=sqlalchemy.NullPool)
    schema.upgrade(database_url, "0002")
    with engine.begin() as db:
        db.exec_driver_sql(
            "INSERT INTO accounts (username, password_hash, display_name) VALUES ('a', 'x', 'A')"
        )
    schema.upgrade(database_url)
    with engine.connect() as db:
        assert db.exec_driver_sql("SELECT balance_cents FROM wallets").all() == [(0,)]


def test_it_does_not_start_on_an_older_schema(database_url: str) -> None:
    program = [part for part in command("new", database_url, 0) if part != "--migrate"]
    assert "at revision None, not at 0003; run with --migrate" in run_and_fail(*program)
    assert "run with --migrate" in run_and_fail(*program, "--seed")
    schema.upgrade(database_url, "0002")
    assert "at revision 0002, not at 0003; run with --migrate" in run_and_fail(*program)


def check_constraints(db: sqlalchemy.Connection) -> set[str]:
    found = db.exec_driver_sql(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
    )
    return set(found.scalars())


def declared_checks() -> set[str]:
    return {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in itertools.chain(table.constraints, *(column.constraints for column in table.c))
        if isinstance(constraint, sqlalchemy.CheckConstraint)
    }


# The document


@only_new
def test_the_document_is_openapi(backend: Backend) -> None:
    answer = backend.anybody().get("/api/openapi.json")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    document = answer.json()
    assert document["openapi"] == "3.1.0"
    validate(document, cls=OpenAPIV31SpecValidator)
    ids = [operation["operationId"] for _, _, operation in documented(document)]
    assert len(ids) == len(set(ids))


async def test_what_is_served_is_documented_and_the_other_way_round() -> None:
    engine = create_engine("postgresql://nobody@/nowhere")
    app = build_app(Database(engine))
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert served == {(operation.method, operation.path) for operation in OPERATIONS}
    await engine.dispose()


@only_new
def test_every_documented_operation_answers_as_documented(backend: Backend) -> None:
    document = backend.anybody().get("/api/openapi.json").json()
    for path, method, operation in documented(document):
        there = path.replace("{account_id}", "3").replace("{post_id}", "3").replace("{comment_id}", "999999")
        stranger = backend.anybody().request(method, there)
        assert str(stranger.status_code) in operation["responses"], (method, path, stranger.text)
        assert (stranger.status_code == 401) == bool(operation["security"]), (method, path)
        if method == "get":
            answer = backend.person("ada").get(there)
            assert answer.status_code == 200
            (kind,) = operation["responses"]["200"]["content"]
            assert answer.headers["Content-Type"].startswith(kind)


@only_new
def test_answers_have_the_documented_shapes(backend: Backend) -> None:
    document = backend.anybody().get("/api/openapi.json").json()
    ada = backend.person("ada")
    checked = 0
    for path, method, operation in documented(document):
        schemas = operation["responses"].get("200", {}).get("content", {}).get("application/json")
        if method == "get" and schemas:
            there = path.replace("{account_id}", "3").replace("{post_id}", "7")
            assert_shape(ada.get(there).json(), schemas["schema"], document)
            checked += 1
    assert checked >= 8
    refused = ada.post("/api/posts", json={})
    assert_shape(refused.json(), {"$ref": "#/components/schemas/Error"}, document)


def test_the_documents_limits_are_the_limits() -> None:
    shapes = describe(OPERATIONS)["components"]["schemas"]
    draft = shapes["PostDraft"]
    assert draft["additionalProperties"] is False
    assert draft["required"] == ["title", "body"]
    assert draft["properties"]["title"]["maxLength"] == 200
    assert draft["properties"]["tags"]["maxItems"] == 8
    assert shapes["TransferOrder"]["properties"]["amount_cents"]["minimum"] == 1
    listing = describe(OPERATIONS)["paths"]["/api/posts"]["get"]["parameters"]
    assert [parameter["name"] for parameter in listing] == ["limit", "cursor", "tag", "author"]
    assert listing[0]["schema"]["maximum"] == 100


@only_new
def test_the_page_shows_all_of_it_and_asks_nobody_else(backend: Backend) -> None:
    answer = backend.anybody().get("/api/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for operation in OPERATIONS:
        assert f'<span class="method">{operation.method}</span> <code>{operation.path}</code>' in answer.text
    links = re.findall(r'(?:href|src)="([^"]*)"', answer.text)
    assert {link for link in links if not link.startswith("#")} == {"/api/openapi.json"}
    anchors = set(re.findall(r'id="([^"]*)"', answer.text))
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert "<script" not in answer.text


def documented(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def assert_shape(value: object, shape: dict[str, Any], document: dict[str, Any]) -> None:
    Draft202012Validator(shape | {"components": document["components"]}).validate(value)


# Permissions


def test_the_table_of_permissions() -> None:
    for role, own in itertools.product((Role.MEMBER, Role.MODERATOR, Role.ADMIN), (True, False)):
        actor = Actor(1 if own else 2, role)
        assert may_edit(actor, author_id=1) is own
        assert may_remove(actor, author_id=1) is (own or role > Role.MEMBER)


def test_what_each_operation_needs() -> None:
    """Written out by hand: a permission that changes should change here too."""
    needs: dict[Role, set[str]] = {}
    for operation in OPERATIONS:
        needs.setdefault(operation.needs, set()).add(f"{operation.method} {operation.path}")
    assert needs[Role.ADMIN] == {"GET /api/accounts"}
    assert needs[Role.NOBODY] == {
        "POST /api/accounts", "GET /api/accounts/{account_id}", "POST /api/session", "GET /api/posts",
        "GET /api/posts/{post_id}", "GET /api/posts/{post_id}/comments", "GET /healthz",
        "GET /api/openapi.json", "GET /api/docs",
    }  # fmt: skip
    assert set(needs) == {Role.NOBODY, Role.MEMBER, Role.ADMIN}


async def test_passwords_are_kept_so_that_both_backends_read_them() -> None:
    kept = await passwords.hash_password("pässword")
    assert check_password_hash(kept, "pässword")
    theirs = generate_password_hash("pässword", method="scrypt:16384:8:5")
    assert await passwords.password_fits("pässword", theirs)
    assert not await passwords.password_fits("password", theirs)
    assert not await passwords.password_fits("password", None)
    assert await passwords.password_fits(PASSWORD, person("ada")["password_hash"])


# Queries


def test_no_list_reads_a_whole_table(database_url: str) -> None:
    """With sequential scans forbidden, one appears in a plan only where no index could do."""
    schema.upgrade(database_url)
    engine = sqlalchemy.create_engine(driver_url(database_url), poolclass=sqlalchemy.NullPool)
    listings = {
        "newest": POSTS.order_by(posts.c.id.desc()).limit(20),
        "by author": POSTS.where(posts.c.author_id == 5, posts.c.id < 9).order_by(posts.c.id.desc()),
        "one": POSTS.where(posts.c.id == 5),
        "comments": COMMENTS.where(comments.c.post_id == 5, comments.c.id > 7).order_by(comments.c.id),
    }
    with engine.connect() as db:
        db.exec_driver_sql("SET enable_seqscan = off")
        for name, listing in listings.items():
            text = listing.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
            plan = "\n".join(db.exec_driver_sql(f"EXPLAIN {text}").scalars())
            assert "Seq Scan" not in plan, f"{name}:\n{plan}"
            assert "Index" in plan


@only_new
def test_removing_removes(backend: Backend) -> None:
    bea = backend.person("bea")
    post = bea.post("/api/posts", json={"title": "t", "body": "b", "tags": ["web"]}).json()
    bea.post(f"/api/posts/{post['id']}/comments", json={"body": "c"})
    bea.delete(f"/api/posts/{post['id']}")
    engine = sqlalchemy.create_engine(driver_url(backend.database), poolclass=sqlalchemy.NullPool)
    with engine.connect() as db:
        for table, key in (("posts", "id"), ("post_tags", "post_id"), ("comments", "post_id")):
            count = db.exec_driver_sql(
                f"SELECT count(*) FROM {table} WHERE {key} = {post['id']}"
            ).scalar_one()
            assert count == 0


@only_new
def test_a_token_in_the_table_is_only_its_hash(backend: Backend) -> None:
    token = backend.person("bea").headers["Authorization"].removeprefix("Bearer ")
    engine = sqlalchemy.create_engine(driver_url(backend.database), poolclass=sqlalchemy.NullPool)
    with engine.connect() as db:
        kept = db.exec_driver_sql("SELECT token_hash FROM sessions").scalars().all()
    assert kept
    assert all(len(each) == 32 and token.encode() not in each for each in kept)


@only_new
def test_a_dry_run_answers_as_if_and_leaves_nothing_written(backend: Backend) -> None:
    ada = backend.person("ada")
    draft = {"title": "As if", "body": "Nobody will read this.", "tags": ["dry-run-only"]}
    before = ada.get("/api/posts?tag=dry-run-only").json()

    written = ada.post("/api/posts", json=draft, headers={"X-Dry-Run": "1"})

    assert written.status_code == 201
    assert written.json()["title"] == "As if"
    assert ada.get(written.headers["Location"]).status_code == 404
    assert ada.get("/api/posts?tag=dry-run-only").json() == before
    refused = ada.post("/api/posts", json={"title": ""}, headers={"X-Dry-Run": "1"})
    assert refused.status_code == 422, "what is refused is refused in a dry run too"
    assert ada.post("/api/posts", json=draft).status_code == 201
    assert ada.get("/api/posts?tag=dry-run-only").json() != before
