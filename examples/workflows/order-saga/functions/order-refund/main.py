"""The compensation of order-charge. Input: {"payment": "P-4242", "amount": 19.0}."""


def handler(event):
    print("refunded", event["amount"], "of", event["payment"])
    return {"refunded": event["payment"]}
