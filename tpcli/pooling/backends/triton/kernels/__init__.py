"""The kernels themselves; importing them imports Triton."""
