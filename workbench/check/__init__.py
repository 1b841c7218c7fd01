"""`triptych check`: how a model is read before any stage trains it, and what it lacks."""
