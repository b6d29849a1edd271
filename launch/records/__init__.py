"""The files of a run folder that the launcher reads and writes."""
