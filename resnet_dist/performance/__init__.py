"""How a training step is executed: wrapping, CUDA graphs, fused networks, kernels."""
