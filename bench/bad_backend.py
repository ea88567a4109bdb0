"""A second backend as nobody wants it: `python -m bench.bad_backend KIND` prints its port and serves.

hung      reads and never answers          slow      answers after a second
garbage   answers with what is no HTTP     huge      answers with 100 MB
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

KINDS = ("hung", "slow", "garbage", "huge", "refusing")
HUGE = 100 << 20


async def main(kind: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                if kind == "hung":
                    continue
                if kind == "slow":
                    await asyncio.sleep(1.0)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                elif kind == "garbage":
                    writer.write(b"no HTTP at all\r\n\r\n")
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for _ in range(HUGE // 65536):
                        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if kind == "refusing":
        server.close()
    print(json.dumps({"port": port}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
