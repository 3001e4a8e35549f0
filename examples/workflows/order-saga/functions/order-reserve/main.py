"""Set the lines of an order aside. Input: {"order": "A-17", "lines": [{"sku": "mug", "count": 2, "price": 9.5}]}."""


def handler(event):
    lines = event["lines"]
    if not lines:
        raise ValueError("an order has at least one line")
    return {"reservation": f"R-{event['order']}", "total": sum(line["count"] * line["price"] for line in lines)}
