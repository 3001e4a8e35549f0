"""JSON Schema for what people answer."""

import re

import pytest

from nova.domain.schemas import check_schema, violations

ORDER = {
    "type": "object",
    "required": ["lines"],
    "properties": {"lines": {"type": "array", "items": {"$ref": "#/$defs/line"}}},
    "$defs": {"line": {"type": "object", "properties": {"count": {"type": "integer", "minimum": 1}}}},
}


def test_a_value_that_does_not_fit_is_told_with_every_place() -> None:
    check_schema(ORDER)
    assert violations(ORDER, {"lines": [{"count": 1}]}) == []
    found = violations(ORDER, {"lines": [{"count": 0}, {"count": "x"}]})
    assert [path for path, _ in found] == ["lines[0].count", "lines[1].count"]
    assert violations(ORDER, {}) == [("", "'lines' is a required property")]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nope"}, "not a JSON Schema at type"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}, "refers to 'http://127.0.0.1:1/x'"),
        ({"items": {"$ref": "#/$defs/missing"}}, "refers to '/$defs/missing'"),
    ],
)
def test_what_is_no_schema_or_leads_elsewhere_is_refused(schema: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_schema(schema)
