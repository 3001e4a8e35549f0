"""Charge a card. Input: {"card": "4242", "amount": 19.0}; the card 4000 is declined."""


class CardDeclined(Exception):
    pass


def handler(event):
    if event["card"] == "4000":
        raise CardDeclined(f"no {event['amount']} on this card")
    return {"payment": f"P-{event['card']}", "amount": event["amount"]}
