"""The codec: what comes back is what went in; old bytes stay readable; bad bytes are named; it is quick."""

from __future__ import annotations

import base64
import json
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.errors import CkptError, DamagedError
from ckpt.history import codec
from ckpt.model import Snapshot
from tests.unit import samples

#: encode(samples.snapshot()) as version 1 wrote it. Never change it: a store of that day holds such bytes.
GOLDEN_1 = (
    "eAHtVVtu2zAQvIqx32xM6mXLQD96DsEIKImRWUuUSlJJU0N371Cuk7oocoCW8gdfyx1yOLO+0LOyTo+GDoKRM3Jyp9HT4UJ2DG2ViUQwwTk/MvLyrMyjxLTY"
    "lZi6+xg9Kelnq1zYfVbWqJ4OVDyI5IETo0l26tHpH4oOGS+LJaRzZwRXF5p0i9mARM5L6x+9bsJSwMXOdRlrU/db3Hu3GYcBSC+jBSqQwgjb/Mkq2V4B/Hv0"
    "XwCs6hBGX+L3IQOg9jvY83hB0Ot0N+AB1/6kTKtNh7eEStyra2SPt69obdmOVeHFmWD8+juyT7nImJn7nl3IjbNtkBN6qHtFC1K0qtFXUVYEQQVJ0HUPTWPf"
    "b160P42z38iN14Pa9HrQflOrThu3kZ3UhljQq/Te6nr2V0lap74Facq2RU48OF+WBfg3bSR/FV/UxoeauC3+i9qAggaJ4mNCdaiqMt2LMinyQqT7JGNvw5Qn"
    "fM9yBv2AhScNDTPazs5ua222t6pUZLuiZNlOBBeIIt1na1W9K6EodpBtAErSvOD5XoiEB6B1GHD3e5ayNGNUnZScjgCSZjSvwzg7wk6R8V2aijJFJE8T9jbO"
    "kzRB9pQlJaxbwVHN+Y/dq+1cY/XkR7teOLhVIGsK5yZoM4yTI+Lu7H5vstqiIsDTq2UPt6P/ugmtq7fJ633gQWQMrK2YqPLNSdpWPRMI5bDnJP0JxWGLqW2o"
    "GKFAVOBaPSvjn1qE8Tyc9ELNOBv8N+2WcMax/qoaH3JiUPdjHbqxxN/8GtvIQGQgMhAZiAxEBiIDkYHIQGQgMvD/MPCZjsvyE9Xph48="
)


@given(samples.SNAPSHOTS)
@settings(max_examples=150, deadline=None)
def test_round_trip(snapshot: Snapshot) -> None:
    assert codec.decode(codec.encode(snapshot)) == snapshot


def test_golden_version_1_still_reads() -> None:
    assert codec.decode(base64.b64decode(GOLDEN_1)) == samples.snapshot()


def test_newer_version_is_named() -> None:
    newer = zlib.compress(json.dumps({"version": codec.VERSION + 1, "snapshot": {}}).encode())
    with pytest.raises(DamagedError, match=f"version {codec.VERSION + 1}.*newer ckpt"):
        codec.decode(newer)


@given(st.binary(max_size=64))
def test_noise_is_refused_by_one_error(noise: bytes) -> None:
    with pytest.raises(CkptError):
        codec.decode(noise)


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=100)
def test_damage_inside_the_document_is_refused_or_harmless(place: int, change: int) -> None:
    text = bytearray(zlib.decompress(codec.encode(samples.snapshot())))
    text[place % len(text)] ^= change
    try:
        codec.decode(zlib.compress(bytes(text)))
    except DamagedError:
        return  # refused by name; a changed digit or letter is for the store's checksum to find


def test_many_threads_are_small_and_quick() -> None:
    """Processor time by ratio to the least that this could cost: zlib over the same raw bytes."""
    snapshot = samples.large()
    raw = b"".join(thread.regs + thread.xstate for thread in snapshot.tasks[0].threads)

    def best(work: object) -> float:
        assert callable(work)
        times = []
        for _ in range(7):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    data = codec.encode(snapshot)
    assert len(data) < len(raw) / 8
    floor = best(lambda: zlib.decompress(zlib.compress(raw, 1)))
    assert best(lambda: codec.decode(codec.encode(snapshot))) < 20 * floor
