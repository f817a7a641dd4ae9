"""What a rollback says of clocks: they go on. No call gives a living process of several threads other ones, and an instant that the
program remembers stays the same. Only a process that was restored from an older generation may be behind what it remembers then."""

from __future__ import annotations

from ckpt.model import Snapshot


def behind(now: Snapshot, wanted: Snapshot) -> list[str]:
    """Both as their own program sees them (Snapshot.features, "clocks")."""
    here, there = now.features.get("clocks"), wanted.features.get("clocks")
    if not here or not there or here["monotonic"] >= there["monotonic"]:
        return []
    late = (there["monotonic"] - here["monotonic"]) / 1e9
    name = f"task {wanted.root.pid} ({wanted.task(wanted.root.pid).comm})"
    return [
        f"{name}: its CLOCK_MONOTONIC is {late:.1f} s behind what it was then, and waits until an instant end so much later: "
        "ckpt restore --replace brings its clocks along"
    ]
