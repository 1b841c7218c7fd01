"""Compare SFT and PPO on held-out prompts."""
