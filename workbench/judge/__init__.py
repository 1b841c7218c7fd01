"""`triptych judge`, `score` and `labeler-folds`: how far a reward model can be trusted."""
