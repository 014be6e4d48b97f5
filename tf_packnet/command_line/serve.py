"""`tf-packnet serve`: serves all tasks of a pack over HTTP."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tf_packnet.command_line.parsers import LAYERS_HELP, MAX_BYTES_HELP, FloatParser, IntegerParser, ScaleParser
from tf_packnet.command_line.parsing import UsageError, check_no_positional, parse_flags
from tf_packnet.serving import Settings, serve
from tf_packnet.system.images import RESIZES

USAGE = """\
Serves all tasks of a pack over HTTP, with the REST interface of TensorFlow Serving.

usage: tf-packnet serve --pack=FILE_OR_FOLDER [--port=8501] [--name=value ...]

  --pack=out/digits/pack.packnet     a pack file; loaded again when it is replaced
  --pack=models/digits               versions from tp.export_for_serving: the newest is served

  curl -F task=2-3 -F image=@a.png localhost:8501/v1/models/digits:classify"""

_DEFAULTS = Settings._field_defaults


def main(argv: Sequence[str]) -> None:
    """Run `tf-packnet serve` with a command line (`argv[0]` is the program's name)."""
    serve(parse_command(argv))


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """Declare all flags in a new `FlagValues`. Return it, not parsed yet, and the names of the flags by theme."""
    values = flags.FlagValues()

    def define(name: str, text: str, parser: flags.ArgumentParser | None = None) -> None:
        parser = parser or flags.ArgumentParser()
        flags.DEFINE(parser, name, _DEFAULTS.get(name), text, values, flags.ArgumentSerializer())

    def define_number(name: str, least: int, text: str, most: float = float("inf"), whole: bool = True) -> None:
        define(name, text, IntegerParser() if whole else FloatParser())
        expected = f"expected at least {least}" if most == float("inf") else f"expected {least} to {most}"
        flags.register_validator(name, lambda value: value is None or least <= value <= most, expected, values)

    define(
        "pack",
        "A pack file (.packnet or .keras), a SavedModel folder, or a folder of versions: folders with the names 1, 2, "
        "..., each a SavedModel or with one pack file. A new version is loaded while the present one serves.",
    )
    define("name", "The name of the model in requests. Default: the name of the file or folder.")
    flags.DEFINE_boolean(
        "per_task_kernels",
        _DEFAULTS["per_task_kernels"],
        "Keep dense kernels of each task of a pack file in memory: faster, but as large as the models of all tasks. "
        "For a SavedModel, the option of tp.export_pack decides.",
        flag_values=values,
    )
    define("layers", LAYERS_HELP)
    define_number("max_bytes", 1, MAX_BYTES_HELP)
    define("host", "The address to listen on; 0.0.0.0 for all.")
    define_number("port", 0, "The port to listen on; 0 for any free one.", 65535)
    define_number("poll_seconds", 0, "How often to look for a new version, in seconds.", 86400, whole=False)
    define("scale", "Factor for the pixels of images, such as 1/255. Default: the recorded one.", ScaleParser())
    define("resize", "How images are brought to the size of the network. Default: the recorded way, or stretch.")
    flags.register_validator(
        "resize", lambda way: way is None or way in RESIZES, f"expected one of {', '.join(RESIZES)}", values
    )
    define_number("max_batch", 1, "Most examples to compute in one call; 1 computes each example alone.")
    define_number("max_requests", 1, "Most requests at one time; others get status 503.")
    define_number("max_request_bytes", 1, "Largest body of a request, in bytes.")
    define_number("max_image_bytes", 1, "Most memory that decoding one image may take, in bytes.")
    return values, {
        "Pack": ["pack", "name", "per_task_kernels", "layers", "max_bytes"],
        "Server": ["host", "port", "poll_seconds", "max_batch"],
        "Images": ["scale", "resize"],
        "Bounds": ["max_requests", "max_request_bytes", "max_image_bytes"],
    }


def parse_command(argv: Sequence[str]) -> Settings:
    """Parse a command line (`argv[0]` is the program's name). `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown, malformed or missing, or its value out of range.
    """
    values, themes = define_flags()
    check_no_positional(parse_flags(argv, values, themes, USAGE))
    given: dict[str, Any] = {name: values[name].value for name in Settings._fields}
    if not given["pack"]:
        raise UsageError("--pack: expected a pack file or a folder, such as --pack=out/digits/pack.packnet")
    pack = Path(given["pack"]).expanduser()
    name = given["name"] or pack.resolve().stem
    if "/" in name or ":" in name:
        raise UsageError(f"--name={name}: expected a name without / and :")
    return Settings(**{**given, "pack": pack, "name": name})
