"""Checks for optional libraries, which the extras of the package install."""

from importlib.util import find_spec

from tf_packnet.errors import StoppedError


class MissingExtraError(StoppedError, ImportError):
    """A library that this part of tf_packnet needs is not installed.

    Attributes:
        purpose: What the library is needed for.
        modules: Names of the missing modules.
        extra: The extra that installs them.
    """

    def __init__(self, purpose: str, modules: tuple[str, ...], extra: str = "experiments"):
        super().__init__(f"{purpose} needs {', '.join(modules)}: pip install 'tf_packnet[{extra}]'")
        self.purpose = purpose
        self.modules = modules
        self.extra = extra

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...], str]]:
        return type(self), (self.purpose, self.modules, self.extra)


def require_extra(purpose: str, *modules: str, extra: str = "experiments") -> None:
    """Raise MissingExtraError unless all `modules` are installed. None of them is imported.

    Args:
        purpose: What the modules are needed for: the first words of the error message.
        modules: Top-level modules, such as `pandas`.
        extra: The extra that installs them.
    """
    missing = tuple(module for module in modules if find_spec(module) is None)
    if missing:
        raise MissingExtraError(purpose, missing, extra)
