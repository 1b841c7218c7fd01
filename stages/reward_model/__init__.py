"""Stage 2: train a reward model on ranked answers."""
