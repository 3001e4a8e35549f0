from nova.domain.function import Capture
from nova.execution.capture import kept, redact
from tests.execution.fakes import make_snapshot
from tests.execution.finished import boom, finished


def _kept(capture: Capture, payload: bytes = b'{"a":1}', *, max_kb: int = 64, failed: bool = False) -> object:
    call, result = finished(make_snapshot(), payload, error=boom() if failed else None)
    return kept(capture, max_kb, call, result)


def test_all_keeps_input_and_output_as_they_are() -> None:
    assert _kept(Capture(), b'{"a": 1.0}') == (b'{"a": 1.0}', b'"ok"')


def test_none_keeps_nothing() -> None:
    assert _kept(Capture("none"), failed=True) == (None, None)


def test_errors_keeps_the_input_of_failed_calls_only() -> None:
    assert _kept(Capture("errors")) == (None, None)
    assert _kept(Capture("errors"), failed=True) == (b'{"a":1}', None)


def test_a_payload_over_the_limit_is_not_kept_at_all() -> None:
    big = b'"' + b"x" * 1023 + b'"'
    assert _kept(Capture(max_kb=1), big) == (None, b'"ok"')


def test_the_platform_s_limit_holds_over_the_function_s() -> None:
    big = b'"' + b"x" * 2000 + b'"'
    assert _kept(Capture(max_kb=64), big, max_kb=1) == (None, b'"ok"')
    assert _kept(Capture(max_kb=64), big, max_kb=2) == (big, b'"ok"')


def test_redaction_follows_json_pointers_into_objects_and_lists() -> None:
    """SE1: what a function declares as secret in its payloads is not stored."""
    document = b'{"user":{"password":"hunter2","name":"eve"},"cards":[{"n":"4111"},{"n":"4222"}],"a/b":1}'
    masked = redact(document, ("/user/password", "/cards/1/n", "/a~1b", "/nowhere/at/all", "/cards/9/n"))
    assert masked == b'{"user":{"password":"***","name":"eve"},"cards":[{"n":"4111"},{"n":"***"}],"a/b":"***"}'


def test_the_empty_pointer_masks_the_whole_document() -> None:
    assert redact(b"[1,2]", ("",)) == b'"***"'


def test_a_document_that_cannot_be_rewritten_is_not_kept() -> None:
    """SE1: nothing slips past the mask because a number is too large for the machine."""
    assert redact(b'{"secret":"s","n":1e999}', ("/secret",)) is None
