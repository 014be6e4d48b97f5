"""Shows what a pack holds: `python launch/inspect_pack.py --pack=out/digits/pack.keras`. `--help` lists the flags.

Exit codes: 0 done, 1 the page could not be written, 2 bad input, which leaves nothing behind, 130 interrupted.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_PACKNET_LAZY"] = "1"  # TensorFlow starts when the flags are known to be good

from flags.inspecting import parse_inspection
from launch.ending import exit_code


def main() -> None:
    """Does what the command line asks for."""
    asked = parse_inspection(sys.argv)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow(on_cpu=True)
    from tf_packnet.command_line import inspecting

    inspecting.main(asked.pack, asked.format, asked.html)


if __name__ == "__main__":
    sys.exit(exit_code(main))
