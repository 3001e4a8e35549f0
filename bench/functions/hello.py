WHICH = 0


def handler(event, context):
    return {"hello": event["name"], "which": WHICH}
