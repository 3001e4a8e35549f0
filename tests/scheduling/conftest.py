import pytest

from nova.store.db import Database
from tests.scheduling.support import HandClock, Stage, function


@pytest.fixture
async def stage(database: Database) -> Stage:
    hand = HandClock()
    return Stage(database, hand, hand, await function(database))
