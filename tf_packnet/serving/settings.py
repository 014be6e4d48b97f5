"""The settings of a server: what it serves, and its limits."""

from pathlib import Path
from typing import NamedTuple

from tf_packnet.system.limits import DEFAULT


class Settings(NamedTuple):
    """The settings of a server.

    Attributes:
        pack: A pack file, a SavedModel folder, or a folder of versions.
        name: The name of the model in requests.
        host: The address to listen on.
        port: The port to listen on; 0 for any free one.
        poll_seconds: Interval between checks for a new version.
        max_batch: Maximum number of examples to compute in one call; 1 disables batching.
        max_requests: Maximum number of concurrent requests. Further requests are refused with status 503.
        max_request_bytes: Largest body of a request, in bytes.
        max_image_bytes: Limit in bytes on the memory for decoding one image.
        scale: Factor for the pixels of images; None for the recorded one.
        resize: How images are resized to the input of the network; None for the recorded way.
        max_bytes: Limit in bytes on the memory for opening a pack file; None for the default.
        per_task_kernels: Whether a pack file is kept in memory with dense kernels for each task, see `tp.export_pack`.
        layers: A Python file that defines layers of the pack; None for none.
    """

    pack: Path
    name: str
    host: str = "127.0.0.1"
    port: int = 8501
    poll_seconds: float = 1.0
    max_batch: int = 64
    max_requests: int = 256
    max_request_bytes: int = 16_000_000
    max_image_bytes: int = DEFAULT
    scale: float | None = None
    resize: str | None = None
    max_bytes: int | None = None
    per_task_kernels: bool = False
    layers: str | None = None
