"""`triptych chat`: talk to a policy in the terminal."""
