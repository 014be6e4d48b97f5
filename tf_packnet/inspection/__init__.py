"""Shows the contents of a pack: tables and an HTML page."""

from tf_packnet.system.extras import require_extra

require_extra("tf_packnet.inspection", "jinja2", "matplotlib", "PIL")
