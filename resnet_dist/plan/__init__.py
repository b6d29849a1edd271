"""How long, how much, how large: a run forecast before it is started. `resnet-dist plan`."""
