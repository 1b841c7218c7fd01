"""`triptych evaluate-tasks`: compare models on held-out tasks."""
