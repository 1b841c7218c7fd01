"""Between stages 2 and 3: choose the best SFT checkpoint."""
