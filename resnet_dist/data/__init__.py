"""The data path: index, order, augmentation parameters, and the loaders that follow them."""

from resnet_dist.data.nvjpeg import load_nvjpeg

load_nvjpeg()  # before torchvision is imported, which may bring another one
