"""The data path: index, order, augmentation parameters, and the loaders that follow them."""
