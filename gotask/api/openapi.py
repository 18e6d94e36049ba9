"""The OpenAPI 3.1 page, made from CALLS and the Structs."""

from functools import cache
from http import HTTPStatus
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw, Struct

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
    template = "#/components/schemas/{name}"
    schemas, components = msgspec.json.schema_components([_shown(kind) for kind in kinds], ref_template=template)
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


def _shown(kind: Any) -> Any:
    """A type for description: raw JSON becomes any value, since msgspec can describe no default that is Raw."""
    if kind is Raw:
        return Any
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _shown_struct(kind)
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        return Annotated[_shown(arguments[0]), *kind.__metadata__]
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return Union[tuple(_shown(one) for one in arguments)]  # noqa: UP007 - made from a tuple
    return get_origin(kind)[tuple(_shown(one) for one in arguments)] if get_origin(kind) in (list, dict) else kind


@cache
def _shown_struct(kind: type[Struct]) -> type[Struct]:
    hints = get_type_hints(kind, include_extras=True)
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        options = {"default": field.default, "default_factory": field.default_factory}
        if isinstance(field.default, Raw):
            options["default"] = msgspec.json.decode(field.default)
        if isinstance(options["default"], dict):
            options = {"default_factory": dict}
        fields.append((field.name, _shown(hints[field.name]), msgspec.field(**options)))
    strict = kind.__struct_config__.forbid_unknown_fields
    namespace = {"__doc__": kind.__doc__}
    made: type[Struct] = msgspec.defstruct(
        kind.__name__, fields, kw_only=True, forbid_unknown_fields=strict, namespace=namespace
    )
    return made


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
