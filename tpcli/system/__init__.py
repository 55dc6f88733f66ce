"""The machine: files, locks, devices, ranks, terminal text. Knows nothing of models."""
