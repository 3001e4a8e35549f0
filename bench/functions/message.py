"""Takes whatever it is called with."""

WHICH = 0


def handler(event):
    return {"which": WHICH}
