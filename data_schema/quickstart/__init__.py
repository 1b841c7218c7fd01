"""The quickstart's small world: words, tasks with right answers, and data."""
