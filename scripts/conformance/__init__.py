"""What triptych computes with a model, held against the model's own forward pass."""
