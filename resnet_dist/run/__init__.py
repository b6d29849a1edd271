"""The run folder: where it is, who owns it, and what is written into it. Does not import torch."""
