"""`triptych evaluate-tasks`: zero- and few-shot evaluation on held-out tasks."""
