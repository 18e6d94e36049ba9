"""The OpenAPI 3.1 page, made from CALLS and the Structs."""

from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

import gotask.service  # noqa: F401 - its operations fill CALLS
from gotask import __version__
from gotask.calls import CALLS, Call

PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence: what was wrong, and what to do."},
    },
    "required": ["type", "title", "status", "detail"],
}


@cache
def page() -> tuple[str, bytes]:
    """Content type and body of the description."""
    return "application/json", msgspec.json.encode(document())


def document() -> dict[str, Any]:
    kinds = list({kind: None for call in CALLS.values() for kind in (call.body, call.query, call.answer) if kind})
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for call in CALLS.values():
        paths.setdefault(call.path, {})[call.verb.lower()] = _operation(call, refs, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "GoTask", "version": __version__, "description": "Times are RFC 3339, durations seconds."},
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": PROBLEM},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "What was wrong",
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
        },
    }


def _operation(call: Call, refs: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    answer = {"description": HTTPStatus(call.status).phrase, "content": {"application/json": {"schema": refs[call.answer]}}}
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "tags": [call.path.removeprefix("/api/v1/").split("/")[0] if call.path.startswith("/api/") else "health"],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(kind)}
            for name, kind in call.path_params.items()
        ]
        + [
            {"name": name, "in": "query", "schema": msgspec.json.schema(parameter.annotation) | {"default": parameter.default}}
            for name, parameter in call.query_params.items()
        ],
        "responses": {str(call.status): answer, "default": {"$ref": "#/components/responses/Problem"}},
        "x-scope": call.scope,
    }
    if call.name == "create_job":
        operation["responses"]["200"] = {**answer, "description": "The job that stands: this id or unique key is known"}
    if call.query is not None:
        fields = components[call.query.__name__]["properties"]
        operation["parameters"] += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    if call.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[call.body]}}}
    if call.scope != "public":
        operation["security"] = [{"key": []}, {}]
    return operation
