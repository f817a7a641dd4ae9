"""Snapshot against snapshot: what differs (snapshots.py), and what of it may differ after a restore (faithful.py). Pure."""

from ckpt.compare.faithful import MAY, unfaithful
from ckpt.compare.snapshots import REGISTERS, Difference, Field, compare, hash_text, mapping_title, registers

__all__ = ["MAY", "REGISTERS", "Difference", "Field", "compare", "hash_text", "mapping_title", "registers", "unfaithful"]
