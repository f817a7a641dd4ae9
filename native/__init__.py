"""The C capture core. `native._native` is compiled from ckpt_native.h; `ckpt.live` is its only importer."""
