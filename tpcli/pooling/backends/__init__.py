"""Compiled forms of the pooling operators: C for CPUs, Triton for GPUs."""
