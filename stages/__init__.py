"""One file is one step of the paper: supervised tuning, comparisons, reward model, PPO, evaluation; and the runner."""
