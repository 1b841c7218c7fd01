"""Stage 2a: answers of the SFT model, sampled and ranked by code."""
