"""Make a thumbnail. Input: {"image": base64, "width": pixels}. The dependency comes from requirements.txt."""

import base64
import io

from PIL import Image


def handler(event, context):
    original = Image.open(io.BytesIO(base64.b64decode(event["image"])))
    width = int(event.get("width", 96))
    small = original.convert("RGB")
    small.thumbnail((width, width))
    out = io.BytesIO()
    small.save(out, "PNG")
    return {
        "from": {"format": original.format, "width": original.width, "height": original.height},
        "to": {"width": small.width, "height": small.height, "bytes": out.tell()},
        "image": base64.b64encode(out.getvalue()).decode(),
    }
