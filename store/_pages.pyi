"""The compiled module (build_store.py). Its names are those of ckpt_store.h; cffi's objects have no types of their own."""

from typing import Any

ffi: Any
lib: Any
