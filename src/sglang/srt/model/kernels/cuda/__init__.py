"""The op set of NVIDIA GPUs: ops.py is its entry, the Triton kernels are in ../triton."""
