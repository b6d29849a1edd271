"""Where do two runs part, and why? `resnet-dist diff`."""
