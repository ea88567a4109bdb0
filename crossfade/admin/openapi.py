"""The API's description as OpenAPI 3.1, derived from the forms that requests and answers really have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

from crossfade.admin.answers import Refusal
from crossfade.admin.asking import STATUS
from crossfade.admin.operation import Operation
from crossfade.admin.page import READINESS

_REF: Final = "#/components/schemas/{model}"


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The API's description, derived from what its bodies and answers are made of."""
    schemas: dict[str, Any] = {}
    for name, adapter in (("ProxyStatus", STATUS), ("Readiness", READINESS)):
        _add_schema(schemas, name, adapter.json_schema(ref_template=_REF))
    _add_model(schemas, Refusal, "serialization")
    paths = _public_paths()
    for each in operations:
        _add_model(schemas, each.answer, "serialization")
        described: dict[str, Any] = {
            "summary": each.summary,
            "operationId": each.handler.__qualname__.replace(".", "_"),
            "security": [{"token": []}],
            "parameters": _path_parameters(each.path),
            "responses": {
                "200": {"description": "Done", "content": _content(_ref(each.answer.__name__))},
                "default": {"description": "Not done, and why", "content": _content(_ref("Refusal"))},
            },
        }
        if each.method == "GET":
            described["parameters"] += _query_parameters(each.said)
        else:
            _add_model(schemas, each.said, "validation")
            described["requestBody"] = {"required": True, "content": _content(_ref(each.said.__name__))}
        paths.setdefault(each.path, {})[each.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "Crossfade admin API", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _public_paths() -> dict[str, dict[str, Any]]:
    text = {"text/plain": {"schema": {"type": "string"}}}

    def get(summary: str, answers: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        responses = {
            code: {"description": description, "content": content}
            for code, (description, content) in answers.items()
        }
        return {"get": {"summary": summary, "responses": responses}}

    ready = _content(_ref("Readiness"))
    return {
        "/healthz": get("Whether this process lives", {"200": ("It does", text)}),
        "/readyz": get(
            "Whether all workers accept",
            {"200": ("They do", ready), "503": ("They do not, and why", ready)},
        ),
        "/metrics": get("Metrics in Prometheus' or OpenMetrics' text format", {"200": ("All metrics", text)}),
        "/api/v1/proxy": get(
            "Status of the instance and its workers",
            {
                "200": ("The status", _content(_ref("ProxyStatus"))),
                "503": ("The supervisor does not answer", _content(_ref("Refusal"))),
            },
        ),
        "/api/v1/openapi.json": get("This document", {"200": ("OpenAPI", _content({"type": "object"}))}),
    }


def _add_model(
    schemas: dict[str, Any], model: type[BaseModel], mode: Literal["validation", "serialization"]
) -> None:
    schema = model.model_json_schema(ref_template=_REF, mode=mode)
    _add_schema(schemas, model.__name__, schema)


def _add_schema(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    schemas |= schema.pop("$defs", {})
    schemas[name] = schema


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(model=name)}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(form: type[BaseModel]) -> list[dict[str, Any]]:
    schema = form.model_json_schema()
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": described}
        for name, described in schema.get("properties", {}).items()
    ]
