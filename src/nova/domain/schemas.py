"""JSON Schema (draft 2020-12) for values that people give: is a schema one, and does a value fit it.

References lead inside the schema only: what lies elsewhere is never fetched.
"""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_MOST = 20
"""Violations that are told at once."""


def check_schema(schema: dict[str, Any]) -> None:
    """Raise ValueError, saying where, for what is no schema or refers to something outside itself."""
    try:
        Draft202012Validator.check_schema(schema)
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
        for reference in _references(schema):
            resolver.lookup(reference)
    except SchemaError as error:
        raise ValueError(f"not a JSON Schema at {_path(error)}: {error.message[:200]}") from None
    except Unresolvable as error:
        raise ValueError(f"refers to {str(error.ref)[:128]!r}, which it does not contain") from None


def violations(schema: dict[str, Any], value: Any) -> list[tuple[str, str]]:
    """Where ``value`` does not fit, as a path such as ``lines[0].count``, and why; empty: it fits."""
    try:
        found = sorted(_validator(schema).iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
    except Unresolvable as error:
        return [("", f"the schema refers to {str(error.ref)[:128]!r}, which it does not contain")]
    return [(_path(error), error.message[:500]) for error in found[:_MOST]]


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema, registry=Registry())


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(reference := part.get("$ref"), str):
            yield reference
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _path(error: ValidationError | SchemaError) -> str:
    path = ""
    for part in error.absolute_path:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
