"""Only for cffi: everything else stands in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["native/build_native.py:ffibuilder", "store/build_store.py:ffibuilder"])
