"""`triptych plan`: predict PPO's memory use and time."""
