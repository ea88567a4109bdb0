"""The backend as many run it: a Flask application on waitress."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request
from waitress.server import create_server

from tests.clients.backends.script import METHODS, Asked, Diary, play


@contextlib.contextmanager
def flask_backend(diary: Diary) -> Iterator[int]:
    """Serves until the block is left; gives the port."""
    for name in ("waitress", "waitress.queue"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # answers that are cut on purpose
    server: Any = create_server(
        _application(diary), host="127.0.0.1", port=0, threads=16, clear_untrusted_proxy_headers=False
    )
    thread = threading.Thread(target=server.run, name="flask backend")
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        server.trigger.pull_trigger(server.close)
        server.task_dispatcher.shutdown()
        thread.join()


def _application(diary: Diary) -> Flask:
    app = Flask(__name__)

    @app.route("/", defaults={"path": ""}, methods=METHODS, provide_automatic_options=False)
    @app.route("/<path:path>", methods=METHODS, provide_automatic_options=False)
    def serve(path: str) -> Response:
        environ = request.environ
        asked = Asked(
            request.method,
            environ["REQUEST_URI"],
            tuple(request.headers.items()),
            request.get_data(cache=False),
            (environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"])),
        )
        told = play(asked, diary)
        body = told.body
        if request.method == "HEAD" and not isinstance(body, bytes):
            body = b""
        return Response(body, told.status, list(told.fields))

    return app
