"""Programs are compiled once for all tests here, into a cache of their own; where BPF cannot be used the reason is told."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import bpf


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("CKPT_CACHE_DIR")
    os.environ["CKPT_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["CKPT_CACHE_DIR"]
    else:
        os.environ["CKPT_CACHE_DIR"] = before


@pytest.fixture
def usable(cache: None) -> None:
    if (error := bpf.missing()) is not None:
        pytest.skip(f"BPF cannot be used: {error}")
