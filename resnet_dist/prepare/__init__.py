"""Packing a data set into tar shards, once, with every image decoded: `resnet_dist.prepare`."""
