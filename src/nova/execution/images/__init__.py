"""Images: the root file systems of instances that do not share this host's. ``Images`` finds and makes them."""

from nova.execution.images.images import Form, ImageFile, Images

__all__ = ["Form", "ImageFile", "Images"]
