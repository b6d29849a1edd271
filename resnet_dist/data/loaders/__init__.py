"""The loaders: DALI, torch, memory, synthetic; each yields the same batches."""
