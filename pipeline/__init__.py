"""The runner and the command line: recipes, plans, keys, what runs and what is skipped."""
