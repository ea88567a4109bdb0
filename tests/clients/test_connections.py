"""Connections: kept, shared between clients, and never a way for one user's answer to reach another."""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
import pytest
import requests
import urllib3

from tests.clients.backends.script import PAYLOAD
from tests.clients.conftest import Place, Stage
from tests.clients.people import PATIENCE, Ask, Person

USERS = 12
TURNS = 8


@pytest.mark.parametrize("name", ["aiohttp", "flask"])
def test_crossfade_keeps_its_connection(name: str, stage: Stage, person: Person) -> None:
    """Requests one after the other reach the backend over one connection, whatever the clients do."""
    place = stage.places[name]
    for number, front in enumerate(place.fronts):
        story = f"{type(person).__name__}-{name}-{number}"
        for _ in range(5):
            assert person.ask(front, Ask(f"/counted/{story}")).body == b"counted"
        peers = place.diary.peers[story]
        assert len(peers) == 5
        assert len(set(peers)) == 1


def test_http_1_0_has_a_connection_for_each_request(stage: Stage, person: Person) -> None:
    place = stage.places["plain"]
    story = f"plain-{type(person).__name__}"
    for _ in range(3):
        assert person.ask(place.fronts[0], Ask(f"/counted/{story}")).body == b"counted"
    assert len(set(place.diary.peers[story])) == 3


def test_a_client_keeps_its_connection(stage: Stage) -> None:
    """Even before a backend of HTTP/1.0, which closes each of its own."""
    for place in (stage.places[name] for name in ("aiohttp", "flask", "plain")):
        for front in place.fronts:
            with urllib3.PoolManager(ca_certs=stage.ca_file) as pool:
                for target in ("/bytes/100", "/bytes/0", "/status/404", "/status/204", "/range"):
                    pool.request("GET", front + target)
                    pool.request("HEAD", front + target)
                    pool.request("POST", front + "/upload", body=PAYLOAD[:50_000])
                host = pool.connection_from_url(front)
                assert (host.num_connections, host.num_requests) == (1, 15)


def test_a_length_that_is_only_spoken_of(stage: Stage, person: Person) -> None:
    """A 304 may say how long the content would be; the next answer follows it at once."""
    place = stage.places["plain"]
    direct = person.ask(place.direct, Ask("/unmodified"))
    assert ("Content-Length", "5000") in direct.fields
    for front in place.fronts:
        for _ in range(2):
            assert person.ask(front, Ask("/unmodified")) == direct
        assert person.ask(front, Ask("/bytes/10")).body == PAYLOAD[:10]


async def test_users_at_once_stay_apart(stage: Stage) -> None:
    """Each user is told their own name by their own cookie; visitors without one have no name."""
    secure = ssl.create_default_context(cafile=stage.ca_file)
    fronts = [front for name in ("aiohttp", "flask", "plain") for front in stage.places[name].fronts]

    async def user(front: str, name: str) -> None:
        jar = aiohttp.CookieJar()
        connector = aiohttp.TCPConnector(ssl=secure)
        async with aiohttp.ClientSession(front, connector=connector, cookie_jar=jar) as session:
            async with session.get("/whoami", params={"as": name}) as response:
                assert response.cookies["user"].value == name
            for turn in range(TURNS):
                async with session.post("/whoami", data=f"{name} {turn}") as response:
                    assert await response.text() == f"user={name}"
                    assert "Set-Cookie" not in response.headers

    async def visitor(front: str) -> None:
        async with aiohttp.ClientSession(front, connector=aiohttp.TCPConnector(ssl=secure)) as session:
            for _ in range(TURNS):
                async with session.get("/whoami") as response:
                    assert await response.text() == "nobody"

    async with asyncio.TaskGroup() as group:
        for front in fronts:
            group.create_task(visitor(front))
            for number in range(USERS // 2):
                group.create_task(user(front, f"user-{number}-at-{front.rpartition(':')[2]}"))


@pytest.mark.parametrize("kind", ["requests", "httpx"])
def test_users_in_threads_stay_apart(kind: str, stage: Stage) -> None:
    fronts = [front for name in ("aiohttp", "flask") for front in stage.places[name].fronts]
    secure = ssl.create_default_context(cafile=stage.ca_file)

    def turns(session: requests.Session | httpx.Client, front: str, name: str) -> list[str]:
        session.get(f"{front}/whoami?as={name}", timeout=PATIENCE)
        return [session.get(f"{front}/whoami", timeout=PATIENCE).text for _ in range(TURNS)]

    def user(number: int) -> tuple[str, list[str]]:
        front, name = fronts[number % len(fronts)], f"{kind}-{number}"
        if kind == "httpx":
            with httpx.Client(verify=secure, trust_env=False) as client:
                return name, turns(client, front, name)
        with requests.Session() as session:
            session.trust_env = False
            session.verify = stage.ca_file
            return name, turns(session, front, name)

    with ThreadPoolExecutor(USERS) as threads:
        for name, answers in threads.map(user, range(USERS)):
            assert answers == [f"user={name}"] * TURNS


async def test_many_at_once_get_their_own_bytes(stage: Stage) -> None:
    """Answers of many sizes at once over one client, to one backend, in both framings."""
    secure = ssl.create_default_context(cafile=stage.ca_file)
    place = stage.places["aiohttp"]

    async def ask(client: httpx.AsyncClient, front: str, size: int) -> None:
        response = await client.get(f"{front}/{'stream' if size % 2 else 'bytes'}/{size}")
        assert response.content == PAYLOAD[:size]

    limits = httpx.Limits(max_connections=20)
    async with (
        httpx.AsyncClient(verify=secure, trust_env=False, limits=limits, timeout=PATIENCE) as client,
        asyncio.TaskGroup() as group,
    ):
        for size in range(1, 400_000, 9_973):
            for front in place.fronts:
                group.create_task(ask(client, front, size))


def test_after_a_break_off_the_next_user_is_served(place: Place, person: Person) -> None:
    """A cut answer and a client that left leave nothing behind on the connections to the backend."""
    for front in place.fronts:
        for _ in range(3):
            assert person.sip(front, "/stream/900000", 1000)[:1000] == PAYLOAD[:1000]
            got = person.ask(front, Ask("/upload", "POST", (("Content-Type", "text/plain"),), b"mine"))
            assert b'"length": 4' in got.body
