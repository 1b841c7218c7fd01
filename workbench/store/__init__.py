"""`triptych list`, `show`, `log`, `diff`, `verify`, `rm`: look after checkpoints."""
