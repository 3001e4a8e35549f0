"""A day's errors. Input: {"day": "2026-11-22T00:05:00Z"}."""


def handler(event):
    return {"errors": int(event["day"][:10].replace("-", "")) % 7}
