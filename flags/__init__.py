"""The launcher's flags: declared once in `definitions`, parsed into a `Config` by `parsing`."""

from flags.parsing import parse_config

__all__ = ["parse_config"]
