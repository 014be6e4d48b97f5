"""Packaging of tf_packnet: metadata and dependencies are in `[project]` of pyproject.toml."""

from setuptools import setup

setup()
