"""Hand a parcel to the carrier. Input: {"reservation": "R-A-17", "address": "…"}; nobody delivers to the moon."""


class Undeliverable(Exception):
    pass


def handler(event):
    if "moon" in event["address"].lower():
        raise Undeliverable(event["address"])
    return {"parcel": event["reservation"].replace("R-", "T-")}
