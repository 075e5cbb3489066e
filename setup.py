"""Build of oes_fast; all metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["oes_fast", "oes_fast.*"]), "oes_fast.kernels"],
    package_dir={"oes_fast.kernels": "kernels"},
    package_data={"oes_fast": ["py.typed"]},
)
