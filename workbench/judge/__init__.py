"""A reward model looked at before PPO trusts it: `triptych judge`, `score` and `labeler-folds`."""
