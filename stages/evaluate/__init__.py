"""SFT and PPO compared on held-out prompts."""
