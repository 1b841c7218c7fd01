"""How answers are generated: sampling, greedy decoding, rollouts."""
