"""`resnet-dist export`: weights in the forms that other programs read."""
