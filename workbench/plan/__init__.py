"""What PPO needs, predicted (`triptych plan`), and what to do where memory runs out."""
