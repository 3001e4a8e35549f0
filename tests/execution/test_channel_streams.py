"""Pieces on their way from a worker to a reader: their order, slow readers, silence, and how much may lie in between."""

from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from tests.agent.harness import guest
from tests.execution.sinks import Reader

pytestmark = pytest.mark.anyio

SHELL = """#!/bin/sh
while IFS= read -r call <&3; do
  echo '{"chunk": {"enc": "text", "data": "grüße "}}' >&4
  echo '{"chunk":{"data":"Nova","enc":"text"}}' >&4
  case $call in *more*)
    echo '{"chunk": {"enc": "b64", "data": "AAH/"}}' >&4
    echo '{"chunk": {"enc": "json", "data": {"a": [1]}}}' >&4;;
  *bad*)
    echo '{"chunk": {"enc": "b64", "data": "=="}}' >&4;;
  esac
  case $call in *value*) echo '{"output": {"said": 1}}' >&4;;
  *) echo '{"output": null}' >&4;; esac
done
"""


def shell(folder: Path) -> Any:
    return guest("custom", {"bootstrap": SHELL}, folder)


async def test_pieces_come_in_order_and_then_the_answer(tmp_path: Path) -> None:
    """AG14: any program that writes chunk lines streams."""
    async with shell(tmp_path) as instance:
        await instance.init()
        reader = Reader()
        result = await instance.call("more", sink=reader)
        assert (result.output, result.error) == (b"null", None)
        assert reader.values == ["grüße ", "Nova", b"\x00\x01\xff", {"a": [1]}]
        assert (await instance.call("value", sink=Reader())).output == b'{"said": 1}'


async def test_without_a_reader_the_pieces_are_the_output(tmp_path: Path) -> None:
    """Text is joined, anything else makes an array; what the handler returns comes before both."""
    async with shell(tmp_path) as instance:
        await instance.init()
        assert await instance.value("text") == "grüße Nova"
        assert await instance.value("more") == ["grüße ", "Nova", {"b64": "AAH/"}, {"a": [1]}]
        assert await instance.value("value") == {"said": 1}


async def test_a_piece_that_is_not_what_it_says_ends_the_worker(tmp_path: Path) -> None:
    async with shell(tmp_path) as instance:
        await instance.init()
        result = await instance.call("bad", sink=(reader := Reader()))
        assert result.error == FunctionError("Nova.InvalidOutput", result.error.message)
        assert "not valid b64" in result.error.message
        assert reader.values == ["grüße ", "Nova"]
        assert not instance.channel.usable
