"""An iteration of PPO once more, bit for bit: `triptych replay`."""
