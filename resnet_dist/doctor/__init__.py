"""Is this machine, or this set of machines, fit to train? `resnet-dist doctor`."""
