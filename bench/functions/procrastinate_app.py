"""The peer's application: one task as trivial as our function. Its worker imports it as ``procrastinate_app.app``."""

import os

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_DSN"], max_size=20))


@app.task(name="hello")
async def hello(name: str) -> dict[str, str]:
    return {"hello": name}
