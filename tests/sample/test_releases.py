"""Releases of the new service that are wrong on purpose, and how one takes over from the one before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from new_backend.releases import FAILS, MISCOUNTS
from tests.sample.backends import SEED, Backend, command


class Release(Backend):
    """The new service as some release of it, which shares its port with another one if there is one."""

    release = "1.0"

    def start(self) -> None:
        self._log = (self.folder / f"{self.release}.log").open("ab")
        more = ("--seed", str(SEED), "--release", self.release, "--reuse-port")
        self.process = subprocess.Popen(
            command("new", self.database, self.port, *more), stdout=subprocess.PIPE, stderr=self._log
        )
        self.url = self._first_line().removeprefix("listening on ")
        self.port = int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return (self.folder / f"{self.release}.log").read_text()


def of(release: str, database: str, folder: Path, port: int = 0) -> Release:
    made = Release("new", database, folder, port=port)
    made.release = release
    return made


def test_each_is_wrong_in_its_one_place_and_takes_over_from_the_one_before(
    database_url: str, tmp_path: Path
) -> None:
    first = of(MISCOUNTS, database_url, tmp_path)
    first.start()
    try:
        with httpx.Client(base_url=first.url, trust_env=False) as kept:
            assert kept.get("/api/posts/7").json()["comment_count"] == 6  # of 12
            listed = kept.get("/api/posts?limit=100").json()["items"]
            assert next(post for post in listed if post["id"] == 7)["comment_count"] == 6
            with of("1.0", database_url, tmp_path, first.port) as good:
                assert good.port == first.port
                assert first.stop() == 0
                # A connection that was open has ended with its release, and a new one finds the next.
                assert kept.get("/api/posts/7").json()["comment_count"] == 12
    finally:
        first.process.kill()


def test_the_failing_one_fails_for_posts_with_tags_only(database_url: str, tmp_path: Path) -> None:
    bad = of(FAILS, database_url, tmp_path)
    bad.start()
    try:
        with httpx.Client(base_url=bad.url, trust_env=False) as client:
            statuses = {post: client.get(f"/api/posts/{post}").status_code for post in (3, 7)}
            assert statuses == {3: 200, 7: 500}
            assert client.get("/api/posts").status_code == 200
        assert bad.stop() == 0
        assert "KeyError" in bad.log()
    finally:
        bad.process.kill()


@pytest.mark.parametrize("release", ["", "2.0"])
def test_there_are_no_others(release: str) -> None:
    done = subprocess.run(
        command("new", "postgresql://nowhere", 0, "--release", release),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert MISCOUNTS in done.stderr
