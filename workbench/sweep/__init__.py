"""`triptych sweep`: compare a stage under several settings."""
