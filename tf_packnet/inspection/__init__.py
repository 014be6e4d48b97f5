"""What a pack holds: tables and a page."""

from tf_packnet.system.extras import require_extra

require_extra("tf_packnet.inspection", "jinja2", "matplotlib", "PIL")
