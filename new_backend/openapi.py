"""Describes a table of operations as an OpenAPI 3.1 document. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from new_backend.models import Nothing
from new_backend.operations import Operation
from new_backend.paging import LARGEST_ID
from new_backend.permissions import Role
from new_backend.refusals import Error, Reason

JSON = "application/json"


def write(operations: Iterable[Operation[Any, Any]]) -> bytes:
    return json.dumps(describe(operations), ensure_ascii=False, separators=(",", ":")).encode()


def describe(operations: Iterable[Operation[Any, Any]]) -> dict[str, Any]:
    operations = tuple(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = describe_one(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The sample product",
            "version": "1",
            "description": "Accounts, posts with tags and comments, wallets with transfers between accounts.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(operations),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "sid"},
            },
        },
    }


def describe_one(operation: Operation[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "parameters": parameters(operation),
        "responses": responses(operation),
        "security": [{"token": []}, {"session": []}] if operation.needs > Role.NOBODY else [],
    }
    if operation.body is not Nothing:
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": reference(operation.body)}},
        }
    return described


def parameters(operation: Operation[Any, Any]) -> list[dict[str, Any]]:
    an_id = {"type": "integer", "minimum": 1, "maximum": LARGEST_ID}
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": an_id}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    in_query = [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in operation.query.model_json_schema().get("properties", {}).items()
    ]
    in_headers = [
        {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
        for name, description in operation.request_headers.items()
    ]
    return in_path + in_query + in_headers


def responses(operation: Operation[Any, Any]) -> dict[str, Any]:
    """The answer, every refusal by its status, and a word on whatever else may go wrong."""
    described: dict[str, Any] = {str(operation.status): {"description": HTTPStatus(operation.status).phrase}}
    if isinstance(operation.answer, str):
        described[str(operation.status)]["content"] = {operation.answer: {}}
    elif operation.answer is not None:
        described[str(operation.status)]["content"] = {JSON: {"schema": reference(operation.answer)}}
    error = {JSON: {"schema": reference(Error)}}
    by_status: dict[int, list[str]] = {}
    for reason in reasons(operation):
        by_status.setdefault(reason.status, []).append(f"`{reason.code}`: {reason.value[1]}")
    for status, sentences in sorted(by_status.items()):
        described[str(status)] = {"description": " ".join(sentences), "content": error}
    described["default"] = {"description": "The same format for any other fault.", "content": error}
    return described


def reasons(operation: Operation[Any, Any]) -> list[Reason]:
    """Why the operation may be refused: by the checks that its description asks for, then by its handler."""
    found: list[Reason] = []
    if operation.needs > Role.NOBODY:
        found.append(Reason.NOT_AUTHENTICATED)
    if operation.needs > Role.MEMBER:
        found.append(Reason.FORBIDDEN)
    if operation.body is not Nothing:
        found += (Reason.NOT_JSON, Reason.BODY_TOO_LARGE, Reason.MALFORMED_JSON)
    if operation.body is not Nothing or operation.query is not Nothing:
        found.append(Reason.INVALID_INPUT)
    if "{" in operation.path:
        found.append(Reason.NOT_FOUND)
    return [*found, *operation.refusals]


def schemas(operations: Iterable[Operation[Any, Any]]) -> dict[str, Any]:
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Error, "serialization"): None}
    for operation in operations:
        if operation.body is not Nothing:
            wanted[operation.body, "validation"] = None
        if isinstance(operation.answer, type):
            wanted[operation.answer, "serialization"] = None
    _, document = models_json_schema(list(wanted), ref_template="#/components/schemas/{model}")
    found: dict[str, Any] = document["$defs"]
    return found


def reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
