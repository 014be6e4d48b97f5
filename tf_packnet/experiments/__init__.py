"""What the paper asks of the library. Importing this package alone does not start TensorFlow."""

from tf_packnet.system.extras import require_extra

require_extra("tf_packnet.experiments", "filelock", "matplotlib", "pandas")
