"""Exact, fault-tolerant distributed training of ResNets on ImageNet."""

__version__ = "0.1.0"
