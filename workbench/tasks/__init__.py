"""Zero- and few-shot evaluation on held-out tasks: `triptych evaluate-tasks`."""
