"""A model that scores answers: ranking loss, calibration, ensembles, rewards by code."""
