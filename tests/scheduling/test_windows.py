"""Provisioned windows through the API."""

from typing import Any

import pytest

from nova.api import prewarm
from nova.scheduling.windows import WindowHandlers
from tests.control.support import HELLO, Control
from tests.control.support import control as plane_of
from tests.http.harness import management
from tests.scheduling.support import Stage

pytestmark = pytest.mark.anyio
WINDOW: dict[str, Any] = {"cron": "0 12 * * *", "duration_s": 600, "replicas": 4, "name": "lunch"}


async def test_what_stands_ready_and_when_that_changes(stage: Stage) -> None:
    """The clock of the test stands at noon."""
    async with plane_of(stage.db) as plane:
        await put(plane, provisioned=[WINDOW, {**WINDOW, "cron": "30 12 * * *", "replicas": 2}], min_replicas=1)
    rows = [row for row in prewarm.ROUTES if row.op == "function.provisioned"]
    owners = [WindowHandlers(plane.functions, stage.hand)]
    async with management(stage.db, owners, rows) as api:
        shown = (await api.client.get("/functions/hello/provisioned", params={"count": 3})).json()
        assert shown["replicas"] == 4
        assert [(w["name"], w["begins_at"][11:16], w["replicas"]) for w in shown["windows"]] == [
            ("lunch", "12:00", 4),
            ("lunch", "12:30", 2),
            ("lunch", "12:00", 4),
        ]
        stage.hand.move(600)
        assert (await api.client.get("/functions/hello/provisioned")).json()["replicas"] == 1
        assert (await api.client.get("/functions/nobody/provisioned")).status_code == 404


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"cron": "61 * * * *"}, "provisioned.0", "cron"),
        ({"time_zone": "Mars/Olympus"}, "provisioned.0", "not a time zone"),
        ({"duration_s": 59}, "provisioned.0.duration_s", "60"),
        ({"replicas": 7}, "provisioned", "at most max_replicas, which is 6"),
    ],
)
async def test_windows_that_cannot_be_kept_are_refused(stage: Stage, change: Any, field: str, says: str) -> None:
    async with plane_of(stage.db) as plane:
        answer = await put(plane, provisioned=[WINDOW | change], max_replicas=6)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]


async def put(plane: Control, **more: Any) -> Any:
    return await plane.client.put("/functions/hello", json={"runtime": "python", "code": HELLO, **more})
