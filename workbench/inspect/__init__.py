"""`triptych data inspect`: what a data set contains and what is wrong with it."""
