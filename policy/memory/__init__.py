"""Ways to use less memory: gradient checkpointing, models kept on disk, shared and 4-bit weights, the heap."""
