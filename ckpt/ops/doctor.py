"""ckpt doctor: what the wing of the living finds out about this machine."""

from ckpt.live.doctor import Finding, examine, machine

__all__ = ["Finding", "examine", "machine"]
