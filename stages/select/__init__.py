"""Between stages 2 and 3: the SFT checkpoint with the highest reward-model score."""
