"""Stage 2a: sample answers from the SFT model and rank them by code."""
