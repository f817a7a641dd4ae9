"""The SQLite page store. `ckpt.history` is its only importer. The file format stands in FORMAT.md."""

from store.records import Counts, GcResult, Generation, Problem, Progress, Rows, StoreError
from store.store import Store
from store.writer import Writer

__all__ = ["Counts", "GcResult", "Generation", "Problem", "Progress", "Rows", "Store", "StoreError", "Writer"]
