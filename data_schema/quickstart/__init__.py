"""The quickstart's world: its words, its tasks with their right answers, the data drawn from it."""
