"""A day's errors. Input: {"day": "2026-11-22"}."""


def handler(event):
    return {"errors": int(event["day"].replace("-", "")) % 7}
