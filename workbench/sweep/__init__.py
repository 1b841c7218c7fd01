"""One recipe over a grid of overrides: `triptych sweep`."""
