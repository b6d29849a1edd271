"""Networks, synchronised batch norm, and the one order in which a model is wrapped."""
