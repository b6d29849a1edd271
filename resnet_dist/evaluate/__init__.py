"""Evaluation: the pass over a validation split, and `resnet-dist evaluate` for any weights."""
