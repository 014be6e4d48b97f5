"""Files of flags, for `--flagfile`: paths or names of presets.

absl can read flag files too, but it does not know presets, and it would read a device such as /dev/zero without end.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tf_packnet.errors import ArgumentError

# Limit on the size in bytes; a file of all flags with their longest values is smaller.
MAX_BYTES = 2**20

# Where the presets are: in an installed package, and in a checkout.
_PRESET_FOLDERS = (Path(__file__).parent / "presets", Path(__file__).parents[2] / "flags" / "presets")


def presets() -> dict[str, Path]:
    """Return the files of the presets by name."""
    folder = next((folder for folder in _PRESET_FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.flags"))} if folder else {}


def expand_flagfiles(arguments: Sequence[str], outer: tuple[str, ...] = ()) -> list[str]:
    """Replace every `--flagfile=FILE` by the flags in that file, including files named in files.

    Args:
        arguments: The command line without the program's name, or the flags of a file.
        outer: The paths of the files that contain `arguments`, outermost first.

    Returns:
        The arguments without `--flagfile`.

    Raises:
        ArgumentError: If a file cannot be read, is not text, or includes itself.
    """
    expanded: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument == "--":
            return [*expanded, argument, *remaining]
        name, equals, value = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        if not equals:
            if outer or not remaining:
                raise ArgumentError("flagfile", "the path of a file of flags, or the name of a preset", "")
            value = remaining.pop(0)
        if path := _path(value.strip()):
            identity = os.path.realpath(path) if "\0" not in path else path
            if identity in outer:
                raise ArgumentError("flagfile", "a file of flags that does not include itself", path)
            expanded += expand_flagfiles(_read(path), (*outer, identity))
    return expanded


def _path(value: str) -> str:
    """Return the path of a value of `--flagfile`: a file in the current folder, or else a preset of that name."""
    if not os.path.isfile(value) and value in (known := presets()):
        return str(known[value])
    return os.path.expanduser(value)


def _read(path: str) -> list[str]:
    """Return the flags in a file, one per line. Lines that begin with # or // are comments."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ArgumentError("flagfile", f"a readable file of flags, of at most {MAX_BYTES:,} bytes", path)
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES)
    except FileNotFoundError as error:
        expected = f"a readable file of flags ({error.strerror}), or a preset: {', '.join(presets())}"
        raise ArgumentError("flagfile", expected, path) from error
    except OSError as error:
        raise ArgumentError("flagfile", f"a readable file of flags ({error.strerror})", path) from error
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError("flagfile", "a readable file of flags (it is not text)", path) from error
    if "\0" in text:
        raise ArgumentError("flagfile", "a readable file of flags (it is not text)", path)
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "//"))]
