"""Packaging of tf_packnet: the library, the `tf-packnet` command and its presets. The only top-level package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "tf_packnet/version.py").read_text(), re.MULTILINE).group(1)
PRESETS = "tf_packnet.command_line.presets"  # in a checkout: flags/presets

setup(
    name="tf_packnet",
    version=VERSION,
    description="PackNet continual learning for Keras 3, with iterative pruning on a time budget",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["tf_packnet", "tf_packnet.*"]), PRESETS],
    package_dir={PRESETS: "flags/presets"},
    package_data={PRESETS: ["*.flags"]},
    entry_points={"console_scripts": ["tf-packnet = tf_packnet.command_line.program:main"]},
    python_requires=">=3.10",
    install_requires=[
        "absl-py>=1.4",
        "filelock>=3.13",
        "importlib-resources>=6",  # tensorflow-datasets 4.9.10 downloads with it, but does not name it
        "Jinja2>=3.1",
        "keras>=3.12",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "pandas>=2.2",
        "pillow>=10",
        "rich>=13",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tabulate>=0.9",  # pandas writes Markdown with it
        "tensorboard>=2.20",
        "tensorflow>=2.21",
        "tensorflow-datasets>=4.9.10",
        "tensorflow-model-optimization>=0.8.1",
        "tf-keras>=2.21",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "test": ["hypothesis>=6", "pdoc>=15", "psutil>=5.9", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.12"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
