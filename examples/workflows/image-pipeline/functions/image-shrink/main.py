"""Halve a picture in both directions; each pixel is the mean of four."""


def handler(picture):
    grey, width = bytes.fromhex(picture["grey"]), picture["width"]
    half = bytes(
        sum(grey[(y + dy) * width + x + dx] for dy in (0, 1) for dx in (0, 1)) // 4
        for y in range(0, picture["height"], 2)
        for x in range(0, width, 2)
    )
    return {"name": picture["name"], "width": width // 2, "height": picture["height"] // 2, "grey": half.hex()}
