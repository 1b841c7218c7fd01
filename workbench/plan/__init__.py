"""`triptych plan`: PPO's memory and time, predicted."""
