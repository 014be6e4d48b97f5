"""Serves a pack over HTTP, with TensorFlow Serving's REST interface: `serve(settings)` runs until it is terminated.

Importing this package does not import TensorFlow.
"""

from tf_packnet.serving.server import serve
from tf_packnet.serving.settings import Settings

__all__ = ["Settings", "serve"]
