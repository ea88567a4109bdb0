"""A backend that fails a share of its answers, and knows how many: its arguments are SHARE and SEED.

Prints its port as JSON. `GET /_served` answers `{"good": n, "bad": n}` and is not counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
BAD = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nbad\n"


class Backend:
    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._draw = random.Random(seed)
        self._served = {"good": 0, "bad": 0}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        if head.startswith(b"GET /_served "):
            body = json.dumps(self._served).encode()
            return (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
        bad = self._draw.random() < self._share
        self._served["bad" if bad else "good"] += 1
        return BAD if bad else GOOD


async def main() -> None:
    backend = Backend(float(sys.argv[1]), int(sys.argv[2]))
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
