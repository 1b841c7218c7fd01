"""`triptych data inspect`: show what a data set contains."""
