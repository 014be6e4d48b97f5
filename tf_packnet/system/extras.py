"""Libraries that only the extra `experiments` installs."""

from importlib.util import find_spec

from tf_packnet.errors import StoppedError


class MissingExtraError(StoppedError, ImportError):
    """A library is not installed that this part of tf_packnet needs.

    Attributes:
        purpose: What the library is needed for.
        modules: Names of the missing modules.
    """

    def __init__(self, purpose: str, modules: tuple[str, ...]):
        super().__init__(f"{purpose} needs {', '.join(modules)}: pip install 'tf_packnet[experiments]'")
        self.purpose = purpose
        self.modules = modules

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (self.purpose, self.modules)


def require_extra(purpose: str, *modules: str) -> None:
    """Raise MissingExtraError unless all `modules` are installed; imports none of them.

    Args:
        purpose: What needs them; the first words of the error message.
        modules: Top-level modules, such as `pandas`.
    """
    missing = tuple(module for module in modules if find_spec(module) is None)
    if missing:
        raise MissingExtraError(purpose, missing)
