"""Makes a pack wider, so that it can learn more tasks."""

from tf_packnet.growth.growing import grow

__all__ = ["grow"]
