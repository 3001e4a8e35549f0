"""Look at an expense. Input: {"who": "ada", "amount": 120.0, "what": "a chair"}."""


def handler(event):
    return {**event, "large": event["amount"] > 100}
