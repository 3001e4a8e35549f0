import time

WHICH = 0


def handler(event, context):
    """Long enough that a kill finds it at work."""
    time.sleep(0.005)
    return {"hello": event["name"], "which": WHICH}
