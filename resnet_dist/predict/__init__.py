"""`resnet-dist predict`: the classes of images, from any weights."""
