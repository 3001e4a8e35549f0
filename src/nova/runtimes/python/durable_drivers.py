"""What drives the operations of a durable function: each is a generator that yields what has to be called.

One driver calls, the other one awaits, so that handlers of both kinds have the same operations.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

Steps = Generator[Any, Any, Any]


class All(NamedTuple):
    """Generators to be driven side by side, so many at a time; each answers with an outcome."""

    parts: list[Steps]
    limit: int


def calling(steps: Steps) -> Any:
    """Drive an operation of a plain handler; branches have threads."""
    value: Any = None
    try:
        asked = next(steps)
        while True:
            try:
                if isinstance(asked, All):
                    with ThreadPoolExecutor(min(asked.limit, max(1, len(asked.parts)))) as threads:
                        value = list(threads.map(_outcome, asked.parts))
                else:
                    fn, args = asked
                    value = fn(*args)
                    if hasattr(type(value), "__await__"):
                        value.close()
                        raise TypeError("an asynchronous function needs an asynchronous handler")
            except BaseException as error:
                asked = steps.throw(error)
            else:
                asked = steps.send(value)
    except StopIteration as end:
        return end.value


def _outcome(steps: Steps) -> tuple[Any, BaseException | None]:
    try:
        return calling(steps), None
    except BaseException as error:
        return None, error


async def awaiting(steps: Steps) -> Any:
    """The same for an asynchronous handler; branches are tasks."""
    value: Any = None
    try:
        asked = next(steps)
        while True:
            try:
                if isinstance(asked, All):
                    value = await _gathered(asked)
                else:
                    fn, args = asked
                    value = fn(*args)
                    if hasattr(type(value), "__await__"):
                        value = await value
            except BaseException as error:
                asked = steps.throw(error)
            else:
                asked = steps.send(value)
    except StopIteration as end:
        return end.value


async def _gathered(asked: All) -> list[tuple[Any, BaseException | None]]:
    import asyncio

    places = asyncio.Semaphore(asked.limit)

    async def one(steps: Steps) -> tuple[Any, BaseException | None]:
        async with places:
            try:
                return await awaiting(steps), None
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return None, error

    return await asyncio.gather(*(one(steps) for steps in asked.parts))
