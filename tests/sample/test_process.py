"""Each backend as a program: how it starts, what it says when it cannot, and how it ends."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from tests.sample.backends import COMMANDS, PASSWORD, SAMPLE, Backend, command, error_of

ATTEMPTS = 3
"""Each backend's own clocks go on while the machine stands still; a fault of theirs shows every time."""
either = pytest.mark.parametrize("name", list(COMMANDS))


def run_and_fail(*arguments: str) -> str:
    """Runs a program that must give up by itself; returns the one line it says."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr.strip()


@either
def test_a_restart_keeps_the_data_and_plants_no_second_seed(
    name: str, database_url: str, tmp_path: Path
) -> None:
    with Backend(name, database_url, tmp_path) as first:
        post = first.person("bea").post("/api/posts", json={"title": "kept", "body": "kept"}).json()
        assert post["id"] == max(row["id"] for row in SAMPLE["posts"]) + 1
    with Backend(name, database_url, tmp_path) as second:
        assert second.anybody().get(f"/api/posts/{post['id']}").json() == post


@either
def test_without_a_seed_it_starts_empty(name: str, database_url: str, tmp_path: Path) -> None:
    with Backend(name, database_url, tmp_path, seeded=False) as backend:
        assert backend.anybody().get("/healthz").json() == {"status": "ok"}
        assert backend.anybody().get("/api/posts").json() == {"items": [], "next_cursor": None}


@either
def test_two_that_start_at_once_agree_on_the_schema(name: str, database_url: str, tmp_path: Path) -> None:
    backends = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        backends.append(Backend(name, database_url, folder))
    starting = [threading.Thread(target=backend.start) for backend in backends]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    for backend in backends:
        with httpx.Client(base_url=backend.url, trust_env=False) as client:
            assert len(client.get("/api/posts?limit=100").json()["items"]) == 28
        assert backend.stop() == 0, backend.log()


@either
def test_a_request_in_flight_is_answered_before_the_end(name: str, database_url: str, tmp_path: Path) -> None:
    answer = b""
    for _ in range(ATTEMPTS):
        answer = answered_before_the_end(name, database_url, tmp_path)
        if answer.startswith(b"HTTP/1.1 200 OK\r\n"):
            break
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    assert answer.endswith(b'"email":"bea@example.org"}')


def answered_before_the_end(name: str, database_url: str, folder: Path) -> bytes:
    """What a client hears whose request waits in the database while the backend is told to end."""
    backend = Backend(name, database_url, folder)
    with (
        backend,
        psycopg.connect(database_url) as holder,
        socket.create_connection(("127.0.0.1", backend.port), timeout=20) as client,
    ):
        # Somebody holds bea's row, so that her answer waits in the database.
        table, key = ("users", "login") if name == "legacy" else ("accounts", "username")
        token = backend.person("bea").headers["Authorization"]
        holder.execute(f"SELECT 1 FROM {table} WHERE {key} = 'bea' FOR UPDATE")
        body = b'{"bio": "changed at the last moment"}'
        client.sendall(
            b"PATCH /api/me HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (token.encode(), len(body), body)
        )
        wait_for_blocked_statement(database_url, client)
        backend.process.terminate()
        wait_until_refused(backend.port)
        holder.rollback()
        answer = client.makefile("rb").read()  # up to the end of the connection
        assert backend.process.wait(10) == 0
        return answer


@either
def test_idle_clients_do_not_hold_up_the_end(name: str, database_url: str, tmp_path: Path) -> None:
    for _ in range(ATTEMPTS):
        with Backend(name, database_url, tmp_path) as backend:
            assert backend.anybody().get("/api/posts/1").status_code == 200  # and stays connected
            with socket.create_connection(("127.0.0.1", backend.port)) as silent:
                silent.sendall(b"GET /api/po")
                backend.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert backend.process.wait(2.5) == 0  # less than what a request in flight gets
                    return
    raise AssertionError("they held it up each time")


@either
def test_without_its_database_it_answers_503_and_comes_back(name: str, tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tmp_path / "pg", durable=False) as server,
        Backend(name, server.url(), tmp_path) as backend,
    ):
        bea = backend.person("bea")
        server.stop()
        for path in ("/healthz", "/api/posts", "/api/me"):
            refused = bea.get(path)
            assert error_of(refused) == (503, "unavailable", {})
            assert refused.headers["Retry-After"] == "1"
        server.start()
        assert bea.get("/api/me").json()["username"] == "bea"


@either
def test_connections_that_died_while_idle_are_replaced_unnoticed(name: str, tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tmp_path / "pg", durable=False) as server,
        Backend(name, server.url(), tmp_path) as backend,
    ):
        bea = backend.person("bea")
        wait_until_idle_for_a_second(server.url())
        server.stop()
        server.start()
        assert bea.get("/api/me").json()["username"] == "bea"


@either
def test_a_row_that_stays_locked_costs_a_503_and_not_a_thread(
    name: str, database_url: str, tmp_path: Path
) -> None:
    with Backend(name, database_url, tmp_path) as backend, psycopg.connect(database_url) as holder:
        bea = backend.person("bea")
        table, key = ("users", "login") if name == "legacy" else ("accounts", "username")
        holder.execute(f"SELECT 1 FROM {table} WHERE {key} = 'bea' FOR UPDATE")
        assert error_of(bea.patch("/api/me", json={"bio": "x"})) == (503, "unavailable", {})
        holder.rollback()
        assert bea.patch("/api/me", json={"bio": "x"}).json()["bio"] == "x"


@either
def test_a_bug_is_logged_and_not_shown(name: str, database_url: str, tmp_path: Path) -> None:
    backend = Backend(name, database_url, tmp_path)
    backend.start()
    with psycopg.connect(database_url) as db:
        db.execute("ALTER TABLE posts RENAME COLUMN body TO contents")
    with httpx.Client(base_url=backend.url, trust_env=False) as client:
        refused = client.get("/api/posts/1")
        assert error_of(refused) == (500, "internal_error", {})
        assert client.get("/healthz").status_code == 200
    assert backend.stop() == 0
    assert "Traceback" in backend.log()
    assert "UndefinedColumn" in backend.log()


@either
def test_many_logins_at_once_leave_the_others_their_answers(
    name: str, database_url: str, tmp_path: Path
) -> None:
    with Backend(name, database_url, tmp_path) as backend:
        credentials = {"username": "ada", "password": PASSWORD}
        statuses: list[int] = []

        def log_in() -> None:
            statuses.append(
                httpx.post(f"{backend.url}/api/session", json=credentials, timeout=30).status_code
            )

        threads = [threading.Thread(target=log_in) for _ in range(12)]
        for thread in threads:
            thread.start()
        assert backend.anybody().get("/api/posts/1").status_code == 200
        for thread in threads:
            thread.join()
        assert statuses == [201] * 12


# What it says when it cannot start


@either
def test_no_database(name: str, tmp_path: Path) -> None:
    said = run_and_fail(*command(name, f"postgresql://u@/x?host={tmp_path}", 0))
    assert "cannot use the database" in said


@either
def test_a_port_in_use(name: str, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run_and_fail(*command(name, database_url, port))
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "in use" in said


def wait_for_blocked_statement(database_url: str, client: socket.socket) -> None:
    """Waits until a statement waits for a lock, or has waited so long that the client has its answer."""
    with psycopg.connect(database_url, autocommit=True) as db:
        blocked = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while db.execute(blocked).fetchone() is None and not select.select([client], [], [], 0)[0]:
            pass


def wait_until_idle_for_a_second(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as db:
        fresh = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name IN ('legacy', 'new_backend')"
            " AND clock_timestamp() - state_change < interval '1.1 s'"
        )
        while db.execute(fresh).fetchone() is not None:
            pass


def wait_until_refused(port: int) -> None:
    """Waits until nobody listens on the port any more."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
