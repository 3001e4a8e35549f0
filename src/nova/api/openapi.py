"""OpenAPI 3.1, made from the route table and its models."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from nova.api.problem import MEDIA_TYPE, Problem
from nova.api.table import Kind, Route

Json = dict[str, Any]
_REF = "#/components/schemas/{model}"
_SECURITY: list[Json] = [{"apiKey": []}, {"authorization": []}]
_SCOPE_HEADERS = [
    {"$ref": "#/components/parameters/Tenant"},
    {"$ref": "#/components/parameters/Namespace"},
]
_CALLS = ("function.invoke", "function.invoke_stream")
_CALL_HEADERS = {
    "X-Nova-Qualifier": "as the query parameter",
    "X-Nova-Timeout-S": "the caller's deadline in seconds, queueing included",
    "X-Nova-Sticky-Key": "callers with one key stay on one side of an alias's split",
    "X-Nova-Log-Type": "Tail: the answer has the last 4 KiB of what the call printed",
    "traceparent": "W3C trace context, handed to the function",
    "tracestate": "W3C trace context, handed to the function",
}


def document(rows: Iterable[Route], version: str) -> Json:
    """The description of every operation in ``rows``."""
    table = list(rows)
    references, schemas = _schemas(table)
    paths: dict[str, Json] = {}
    for row in table:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nova",
            "version": version,
            "description": "A self-hosted serverless platform. Every path also answers under /v1.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": {
                "Tenant": _header("X-Nova-Tenant", "the tenant to act in, among those the caller holds"),
                "Namespace": _header("X-Nova-Namespace", "the namespace to act in"),
            },
            "responses": {
                "Problem": {
                    "description": "The request was refused (RFC 9457)",
                    "content": {MEDIA_TYPE: {"schema": references[Problem, "serialization"]}},
                }
            },
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "authorization": {"type": "apiKey", "in": "header", "name": "Authorization"},
            },
        },
    }


_References = dict[tuple[type[Any], JsonSchemaMode], Json]


def _schemas(table: list[Route]) -> tuple[_References, Json]:
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "serialization"): None}
    for row in table:
        if row.body is not None:
            wanted[row.body, "validation"] = None
        if row.answer is not None:
            wanted[row.answer, "serialization"] = None
    references, document = models_json_schema(list(wanted), ref_template=_REF)
    return dict(references), document.get("$defs", {})


def _operation(row: Route, references: _References) -> Json:
    operation: Json = {
        "operationId": row.op,
        "summary": row.summary,
        "tags": [row.tag or row.plane.value],
        "parameters": _parameters(row),
        "responses": {str(row.status): _answer(row, references), "default": {"$ref": "#/components/responses/Problem"}},
    }
    if row.permission is None:
        operation["security"] = []
    else:
        operation["security"] = _SECURITY
        operation["x-permission"] = row.permission
    if row.body is not None:
        schema: Json = {"schema": references[row.body, "validation"]}
        operation["requestBody"] = {"required": row.method != "PATCH", "content": {"application/json": schema}}
        if row.kind is Kind.UPLOAD:
            operation["requestBody"]["content"]["multipart/form-data"] = {"schema": {"type": "object"}}
    elif row.op in _CALLS:
        operation["requestBody"] = {"required": False, "content": {"application/json": {"schema": {}}}}
    return operation


def _parameters(row: Route) -> list[Json]:
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in row.params
    ]
    schema = row.query.model_json_schema(ref_template=_REF)
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        parameter = {"name": name, "in": "query", "required": name in required, "schema": field}
        if description := field.pop("description", None):
            parameter["description"] = description
        found.append(parameter)
    if row.op in _CALLS:
        found += [_header(name, text) for name, text in _CALL_HEADERS.items()]
    if row.scoped and row.permission is not None:
        found += _SCOPE_HEADERS
    return found


def _answer(row: Route, references: _References) -> Json:
    answer: Json = {"description": HTTPStatus(row.status).phrase}
    if row.kind is Kind.SSE:
        answer["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    elif row.answer is not None:
        answer["content"] = {"application/json": {"schema": references[row.answer, "serialization"]}}
    return answer


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}
