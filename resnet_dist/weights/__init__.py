"""Weights from files of ours and of others, fitted into a network by name."""
