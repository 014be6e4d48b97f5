"""Output for people: tables, figures, TensorBoard, progress."""

from tf_packnet.system.extras import require_extra

require_extra("tf_packnet.reporting", "jinja2", "matplotlib", "pandas", "tabulate", "tensorboard")
