"""Stage 1: supervised tuning on demonstrations."""
