"""Tools to use around a run, each a command. No other package imports them."""
