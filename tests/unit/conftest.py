"""What several unit tests share as fixtures."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_descriptor_is_left_over() -> Iterator[None]:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # what another test left for the collector is not to go in the middle of this one
    before = count()
    yield
    assert count() == before
