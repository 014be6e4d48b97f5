"""The form of a saved pack, written into it, so that a newer one is not misread by this version."""

from typing import Any

from tf_packnet.errors import ArgumentError

# To be raised when a pack is saved in a form that an earlier version would read wrongly.
# 2 since task names, state and witnesses are saved with the weights; packs of format 1 are read.
FORMAT = 2


def checked_format(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a pack's config without its `format`; packs of before there was one have none.

    Raises:
        ArgumentError: If a newer version of this library saved the pack.
    """
    config = dict(config)
    found = config.pop("format", 1)
    if found != 1:  # the names come with the weights: a config alone has no tasks
        config.pop("tasks", None)
    if type(found) is not int or not 1 <= found <= FORMAT:
        expected = f"1 to {FORMAT}, which this version reads: a newer tf_packnet saved this pack"
        raise ArgumentError("format", expected, found)
    return config
