"""The peer's application: a handler of trivial steps, each in Restate's journal before the next begins. Served by hypercorn."""

import restate  # type: ignore[import-not-found, unused-ignore]

bench = restate.Service("bench")


def hello(name: str) -> dict[str, str]:
    return {"hello": name}


@bench.handler()
async def chain(ctx: restate.Context, steps: int) -> int:
    for number in range(steps):
        await ctx.run_typed(f"step-{number}", hello, name="bench")
    return steps


app = restate.app([bench])
