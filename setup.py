"""Packaging of tf_packnet: maps the presets into the package. Metadata and dependencies are in pyproject.toml."""

from setuptools import find_packages, setup

PRESETS = "tf_packnet.command_line.presets"  # in a checkout: flags/presets

setup(
    packages=[*find_packages(include=["tf_packnet", "tf_packnet.*"]), PRESETS],
    package_dir={PRESETS: "flags/presets"},
    package_data={PRESETS: ["*.flags"], "tf_packnet": ["py.typed"]},
)
