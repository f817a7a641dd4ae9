"""Snapshot against snapshot: what differs (snapshots.py), and what of it may differ after a restore (faithful.py). Pure."""

from ckpt.compare.faithful import MAY, clocks_go_on, unfaithful
from ckpt.compare.snapshots import REGISTERS, Difference, Field, compare, hash_text, mapping_title, registers

__all__ = [
    "MAY",
    "REGISTERS",
    "Difference",
    "Field",
    "clocks_go_on",
    "compare",
    "hash_text",
    "mapping_title",
    "registers",
    "unfaithful",
]
