"""Tensor parallelism: one model over several devices, whose ranks run every step together."""
