"""`triptych sweep`: one recipe over a grid of settings."""
