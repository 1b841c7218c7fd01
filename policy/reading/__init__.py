"""How a model is read exactly: its parts, packed rows, trials of each way of reading, a tiny twin to try them on."""
