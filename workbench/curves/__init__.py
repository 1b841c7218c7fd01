"""`triptych curves`: show the metrics of runs as curves."""
