"""A day's sales. Input: {"day": "2026-11-22"}."""


def handler(event):
    number = int(event["day"].replace("-", ""))
    return {"orders": number % 97, "revenue": number % 9973}
