"""Stage 2: the reward model, trained on ranked answers."""
