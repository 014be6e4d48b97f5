"""Version of the package, which `setup.py` reads from this file."""

__version__ = "0.1.0"
