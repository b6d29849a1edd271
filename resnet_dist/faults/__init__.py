"""Faults from outside and inside: how they are detected, reported, and survived."""
