"""The compiled capture core. Its interface is ckpt_native.h; cffi's objects have no static types of their own."""

from typing import Any

ffi: Any
lib: Any
