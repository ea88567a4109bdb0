"""The application: three parts under one roof, and one boundary where faults become answers."""

from __future__ import annotations

import logging

import psycopg
from flask import Flask, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from examples.legacy import accounts, posts, wallets
from examples.legacy.database import Database
from examples.legacy.refusals import Refusal
from examples.legacy.web import answer, database

MOST_BODY_BYTES = 64 * 1024
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}

log = logging.getLogger("legacy")


def build_app(url: str) -> Flask:
    """The monolith over the PostgreSQL database at `url`."""
    app = Flask("legacy", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MOST_BODY_BYTES
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a path with two slashes is another path, not a redirect
    app.extensions["database"] = Database(url)
    for part in (accounts, posts, wallets):
        app.register_blueprint(part.api)
    app.get("/healthz")(health)
    app.register_error_handler(Refusal, refuse)
    app.register_error_handler(HTTPException, refuse_by_flask)
    app.register_error_handler(psycopg.OperationalError, without_database)
    app.register_error_handler(Exception, broken)
    return app


def health() -> Response:
    """200 while the database answers, else 503."""
    database().execute("SELECT 1")
    return answer({"status": "ok"})


def refuse(refusal: Refusal) -> Response:
    headers = {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status == 503:
        headers["Retry-After"] = "1"
    return answer(refusal.json(), refusal.status, headers)


def refuse_by_flask(error: HTTPException) -> Response:
    response = refuse(Refusal(CODES.get(error.code or 500, "bad_request")))
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ",".join(sorted(error.valid_methods or ()))
    return response


def without_database(error: psycopg.OperationalError) -> Response:
    """Lost connections, timeouts of statements and locks, deadlocks: worth another try."""
    log.warning("database: %s", str(error).strip().replace("\n", " | "))
    return refuse(Refusal("unavailable"))


def broken(error: Exception) -> Response:
    """A bug of ours. The log has the trace, the client does not."""
    log.error("unhandled", exc_info=error)
    return refuse(Refusal("internal_error"))
