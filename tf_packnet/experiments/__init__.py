"""The paper's experiments: many runs, compared in tables, figures and a report. Does not import TensorFlow itself."""

from tf_packnet.system.extras import require_extra

require_extra("tf_packnet.experiments", "matplotlib", "pandas")
