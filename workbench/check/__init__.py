"""`triptych check`: show how a model is read and what it lacks."""
