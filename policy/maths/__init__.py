"""The formulas as pure functions on tensors: log-probabilities, KL, advantages, losses, schedules."""
