"""LoRA files are read by the names in them, and merged into a checkpoint's modules."""
