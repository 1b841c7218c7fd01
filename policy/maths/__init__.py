"""Pure functions on tensors: log-probabilities, KL, advantages, losses."""
