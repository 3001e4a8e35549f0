"""Draw pictures. Input: {"count": 3, "size": 64}. Output: {"pictures": [{"name", "width", "height", "grey"}]}.

A picture is text, two hexadecimal digits for each pixel: no library is needed to read it.
"""


def handler(event):
    size = event["size"]
    return {"pictures": [_picture(number, size) for number in range(event["count"])]}


def _picture(number, size):
    grey = bytes((x * (number + 1) + y) % 256 for y in range(size) for x in range(size))
    return {"name": f"picture-{number}", "width": size, "height": size, "grey": grey.hex()}
