"""`triptych replay`: a recorded PPO iteration repeated bit for bit."""
