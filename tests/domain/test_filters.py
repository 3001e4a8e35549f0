"""Filters: the dialects of the CloudEvents Subscriptions API, and what is said of one that is wrong."""

from typing import Any

import pytest

from nova.domain.filters import MAX_DEPTH, MAX_EXPRESSIONS, Subject, compile_filters
from nova.errors import NovaError

EVENT = Subject(
    {"type": "order.made", "source": "/shop", "id": "1", "partitionkey": "eu"},
    {"Region": "west"},
    b'{"order":{"country":"de","total":12.5,"paid":true,"lines":[{"sku":"a/b"}],"none":null},"a/b":"x","":"empty"}',
)
CASES: list[tuple[list[dict[str, Any]], bool]] = [
    ([], True),
    ([{"exact": {"type": "order.made"}}], True),
    ([{"exact": {"type": "order.made", "source": "/other"}}], False),
    ([{"prefix": {"type": "order."}}, {"suffix": {"type": ".made"}}], True),
    ([{"prefix": {"type": "order."}}, {"suffix": {"type": ".paid"}}], False),
    ([{"all": [{"exact": {"id": "1"}}, {"prefix": {"source": "/s"}}]}], True),
    ([{"any": [{"exact": {"id": "2"}}, {"exact": {"partitionkey": "eu"}}]}], True),
    ([{"any": [{"exact": {"id": "2"}}]}], False),
    ([{"not": {"exact": {"type": "bill.made"}}}], True),
    ([{"not": {"any": [{"exact": {"subject": "x"}}, {"exact": {"id": "1"}}]}}], False),
    ([{"exact": {"headers.region": "west"}}], True),
    ([{"exact": {"headers.none": "west"}}], False),
    ([{"exact": {"subject": "x"}}], False),
    ([{"exact": {"/order/country": "de"}}], True),
    ([{"exact": {"/order/total": "12.5", "/order/paid": "true"}}], True),
    ([{"exact": {"/order/lines/0/sku": "a/b"}}], True),
    ([{"exact": {"/a~1b": "x"}}], True),
    ([{"exact": {"/": "empty"}}], True),
    ([{"prefix": {"/order/lines/1/sku": "a"}}], False),
    ([{"prefix": {"/order/none": "n"}}], False),
    ([{"prefix": {"/order": "{"}}], False),
]


@pytest.mark.parametrize(("filters", "fits"), CASES)
def test_a_message_fits_or_not(filters: list[dict[str, Any]], fits: bool) -> None:
    check = compile_filters(filters)
    assert (check is None or check(EVENT)) is fits


def test_data_that_is_no_object_has_no_members() -> None:
    check = compile_filters([{"exact": {"/a": "1"}}])
    assert check is not None
    assert [check(Subject({}, {}, payload)) for payload in (b"5", b'"a"', b"null", b'{"a":1}')] == [
        False,
        False,
        False,
        True,
    ]


def _nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"exact": {"id": "1"}}
    for _ in range(depth):
        inner = {"not": inner}
    return inner


BAD: list[tuple[list[Any], str]] = [
    ([{}], "filters.0"),
    ([{"exact": {"id": "1"}, "prefix": {"id": "1"}}], "filters.0"),
    ([{"exact": {}}], "filters.0.exact"),
    ([{"exact": {"id": ""}}], "filters.0.exact.id"),
    ([{"exact": {"Bad Name": "x"}}], "filters.0.exact.Bad Name"),
    ([{"exact": {"/a~2": "x"}}], "filters.0.exact./a~2"),
    ([{"exact": {"id": "1"}}, {"all": []}], "filters.1.all"),
    ([{"any": [{"sql": "1"}]}], "filters.0.any.0.sql"),
    ([{"not": [{"exact": {"id": "1"}}]}], "filters.0.not"),
    ([_nested(MAX_DEPTH)], "filters.0" + ".not" * MAX_DEPTH),
    ([{"any": [{"exact": {"id": "1"}}] * MAX_EXPRESSIONS}], f"filters.0.any.{MAX_EXPRESSIONS - 1}"),
]


@pytest.mark.parametrize(("filters", "field"), BAD)
def test_what_is_wrong_is_named(filters: list[Any], field: str) -> None:
    with pytest.raises(NovaError) as caught:
        compile_filters(filters)
    assert caught.value.errors[0].field == field
