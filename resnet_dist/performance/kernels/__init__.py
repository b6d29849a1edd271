"""Batch norm, addition and ReLU in as few passes over memory as possible.

Owns the operators `torch.ops.resnet_dist.batch_norm_*` (see `ops`): written in Triton for NVIDIA
GPUs (`batch_norm_triton`), and as plain PyTorch reference for CPUs and as what the kernels are
tested against (`batch_norm_twins`). Knows nothing of modules, ranks or gradients: the autograd
functions that call them are in `resnet_dist.performance.fused_norm`.

A step of ResNet-50 is limited by memory, not by arithmetic. With E the bytes of an activation in
16 bits, PyTorch's own operators move, for batch norm + addition + ReLU, about 9 E forward (read for
the statistics; read, write; read twice, write; read, write) and 10 E backward. Here it is 4 E
forward and 6 E backward (7 and 5 where nothing is added), and the backward pass needs one bit an
element of the ReLU instead of its output.
"""
