"""Pay an expense. Input: {"who", "amount", "cost_centre"}."""


def handler(event):
    return {"paid": event["amount"], "to": event["who"], "cost_centre": event.get("cost_centre") or "general"}
