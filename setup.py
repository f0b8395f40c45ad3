"""The list of packages, which pyproject.toml cannot express: those found, and configs/ as sam_blvit.recipes."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["sam_blvit*"]), "sam_blvit.recipes"])
