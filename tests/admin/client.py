"""A client of the admin API that sends whatever it is told to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from crossfade.fleet import FLAGS_WITHIN
from tests.support.crossfade_process import PATIENCE, Finished, RunningCrossfade

WHY = {"reason": "a test"}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    """Has the token of the instance itself, until it is given another one, or None."""

    def __init__(self, cf: RunningCrossfade) -> None:
        self.cf = cf
        self.token: str | None = (cf.data_dir / "run" / "admin.token").read_text().strip()

    async def __call__(
        self, method: str, path: str, said: Any = None, *, raw: bytes | None = None, **fields: str
    ) -> Answer:
        body = raw if raw is not None else b"" if said is None else json.dumps(said).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        lines += (f"{name.replace('_', '-')}: {value}" for name, value in fields.items())
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.cf.admin_port)
            head = "\r\n".join(lines) + "\r\n\r\n"
            writer.write(head.encode("utf-8", "surrogateescape") + body)
            answered, _, content = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        first, *rest = answered.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        return Answer(int(first.split()[1]), headers, json.loads(content))

    async def done(self, method: str, path: str, said: Any = None) -> Any:
        answer = await self(method, path, said)
        assert answer.status == 200, answer
        return answer.body


async def obeyed(cf: RunningCrossfade, *arguments: str) -> Finished:
    """A command that goes to the workers directly (kill, unkill), and that the only one obeys at once.

    Or a moment later, where the machine kept it from that for as long as it is waited for.
    """
    began = time.monotonic()
    done = await cf.command(*arguments, "--reason", WHY["reason"])
    if done.code != 7 or time.monotonic() - began < FLAGS_WITHIN:
        assert done.code == 0, done
        assert "1/1 workers" in done.out
    return done


def conforms(value: Any, described: Any, document: Any) -> None:
    """Demand that `value` is what the OpenAPI `document` has as a body."""
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)
