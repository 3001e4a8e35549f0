"""No dead fields: everything that the API accepts has a test that shows its effect."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from nova.api import table
from tests.enforced import ENFORCED

TESTS = Path(__file__).parents[1]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a value of this type may consist of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from models_in(part)


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every field; lists and maps of objects are walked into."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in models_in(field.annotation):
            yield from fields_of(inner, f"{prefix}{name}.")


def accepted() -> set[str]:
    """Every field of every request of the route table."""
    found: set[str] = set()
    for noun in table._NOUNS:
        for route in import_module(f"nova.api.{noun}").ROUTES:
            if route.body is not None:
                found |= {f"{noun}.{name}" for name in fields_of(route.body)}
            found |= {f"{noun}?{name}" for name in fields_of(route.query)}
    return found


@cache
def functions_in(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_accepted_field_has_a_test_of_its_effect() -> None:
    """DB8: every field that the API accepts changes behaviour in some test."""
    unclaimed = sorted(accepted() - ENFORCED.keys())
    assert not unclaimed, "no test claims these fields in tests/enforced.py:\n" + "\n".join(unclaimed)


def test_the_register_names_real_fields_and_tests() -> None:
    gone = sorted(ENFORCED.keys() - accepted())
    assert not gone, f"these are no fields: {gone}"
    missing = sorted(
        claim
        for claim in set(ENFORCED.values())
        for path, _, name in [claim.partition("::")]
        if name not in functions_in(TESTS / path)
    )
    assert not missing, f"these are no tests: {missing}"
