"""One run: its configuration, Algorithm 1, its stages and its output."""

from tf_packnet.system.extras import require_extra

require_extra("tf_packnet.runs", "filelock")
