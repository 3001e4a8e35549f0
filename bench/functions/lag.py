"""How long an event was on its way: its publisher wrote down when it left, on the same machine."""

import time


def handler(event, context):
    return {"lag_ms": (time.time() - event["data"]["at"]) * 1000}
