"""Data looked at before it is trained on: `triptych data inspect`, and the gate before every run."""
