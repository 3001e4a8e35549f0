"""Fixtures of the control plane's tests."""

from collections.abc import AsyncIterator

import pytest

from nova.store.db import Database
from tests.control.support import Control, control


@pytest.fixture
async def plane(database: Database) -> AsyncIterator[Control]:
    async with control(database) as running:
        yield running
