"""`triptych judge`, `score`, `labeler-folds`: examine a reward model."""
