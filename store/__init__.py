"""The SQLite page store. `ckpt.history` is its only importer. The file format stands in FORMAT.md."""
