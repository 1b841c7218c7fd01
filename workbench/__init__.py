"""The tools around a run, each a command; nothing below imports them."""
