"""Ways to save memory: checkpointing, offloading, shared and 4-bit weights."""
