"""The command line's words and what it prints: arguments, failures, tables, the end of a run."""
