"""`triptych replay`: repeat a recorded PPO iteration exactly."""
