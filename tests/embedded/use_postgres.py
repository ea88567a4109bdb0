"""A program that starts the embedded server in FOLDER, says its URL, and stays until its input ends."""

from __future__ import annotations

import sys
from pathlib import Path

from crossfade.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError

try:
    with EmbeddedPostgres(Path(sys.argv[1]), durable=False) as server:
        print(server.url(), flush=True)
        sys.stdin.read()
except EmbeddedPostgresError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
