"""A model that scores, and the maths that trains and calibrates it."""
