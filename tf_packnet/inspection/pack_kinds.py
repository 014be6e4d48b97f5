"""Which kind of pack a file is, by its first bytes: known before TensorFlow starts."""

from pathlib import Path

from tf_packnet.errors import ArgumentError

KERAS, ONE_FILE = "keras", "one file"
_STARTS = {b"PK": KERAS, b"\x89PACKNET": ONE_FILE}


def kind_of(path: Path) -> str:
    """`KERAS`, as `packed.save` writes it, or `ONE_FILE`, as `save_pack` does.

    Raises:
        ArgumentError: If there is no such file, or it is of neither kind.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(max(map(len, _STARTS)))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError("pack", f"the file of a pack ({reason})", str(path)) from error
    kind = next((kind for known, kind in _STARTS.items() if start.startswith(known)), None)
    if kind is None:
        raise ArgumentError("pack", "a pack, as packed.save('pack.keras') writes it", str(path))
    return kind
