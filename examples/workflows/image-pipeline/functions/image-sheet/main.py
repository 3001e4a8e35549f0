"""Put pictures side by side. Input: {"pictures": [...]}. Output: the names in their order, and the sheet's size."""


def handler(event):
    pictures = event["pictures"]
    rows = max(picture["height"] for picture in pictures)
    sheet = "".join(
        picture["grey"][2 * row * picture["width"] : 2 * (row + 1) * picture["width"]]
        for row in range(rows)
        for picture in pictures
    )
    width = sum(picture["width"] for picture in pictures)
    return {
        "names": [picture["name"] for picture in pictures],
        "width": width,
        "height": rows,
        "pixels": len(sheet) // 2,
    }
