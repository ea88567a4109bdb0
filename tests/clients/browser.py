"""A real browser, led over its debugging pipe: NUL-terminated JSON on two file descriptors."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

PATIENCE = 60.0
"""Seconds for one answer of the browser; the machine may be busy."""

_LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes the browser, which reads commands from descriptor 3 and writes answers to 4."""


class Browser:
    """Chromium without a window. `async with` starts it and ends it."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _LAUNCHER,
            str(commands),
            str(answers),
            self._program,
            "--headless=new",
            "--no-sandbox",  # the tests may run as root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--ignore-certificate-errors",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
            pass_fds=(commands, answers),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 26)
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._answers, "rb")
        )
        self._listener = loop.create_task(self._listen(reader))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._ask("Browser.close")
                async with asyncio.timeout(PATIENCE):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._listener.cancel()
            self._transport.close()
            os.close(self._commands)
            self._profile.cleanup()

    async def run(self, url: str, script: str) -> str:
        """What the promise `script` gives in the page at `url`, opened as by a new user without cookies."""
        context = (await self._ask("Target.createBrowserContext"))["browserContextId"]
        target = (await self._ask("Target.createTarget", url="about:blank", browserContextId=context))[
            "targetId"
        ]
        session = (await self._ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        await self._ask("Page.enable", session)
        loaded = self._expect("Page.loadEventFired", session)
        await self._ask("Page.navigate", session, url=url)
        await loaded
        result = await self._ask(
            "Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        await self._ask("Target.disposeBrowserContext", browserContextId=context)
        return str(result["result"]["value"])

    async def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(PATIENCE):
            answer = await future
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    def _expect(self, event: str, session: str) -> asyncio.Future[dict[str, Any]]:
        self._event = event, session
        self._happened: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        return self._happened

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            message = json.loads((await reader.readuntil(b"\0"))[:-1])
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            elif getattr(self, "_event", None) == (message["method"], message.get("sessionId")):
                self._happened.set_result(message)
