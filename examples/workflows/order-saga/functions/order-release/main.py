"""The compensation of order-reserve. Input: {"reservation": "R-A-17"}."""


def handler(event):
    print("released", event["reservation"])
    return {"released": event["reservation"]}
