"""``make gpu-check``: the CUDA kernels on a real GPU, in one command."""
