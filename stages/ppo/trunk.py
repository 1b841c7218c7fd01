"""PPO's roles over one frozen trunk: with `trainable_layers`, all models share the SFT model's lower layers.

The trunk reads each text of a rollout once. Log-probabilities, the reference's, values, scores of reward models with
the same lower layers, and every update go on from its states.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from policy.precision import cast_frozen
from policy.reading.freezing import share_below
from policy.reading.kept_states import room_for_states
from policy.reading.trunk import layers_of, read_above
from policy.sampling.rollout import Rollout, read_below
from reward.ensemble import has_members
from stages.ppo.out_of_memory import RowsAtOnce
from stages.ppo.settings import PpoConfig

logger = logging.getLogger("triptych.ppo")


class Trunk:
    """The SFT model's frozen layers, and the layers whose input is kept for models that go on from there."""

    def __init__(self, model: PreTrainedModel, depth: int) -> None:
        self.model, self.depth = model, depth
        self.layers = {depth}

    def share(self, model: PreTrainedModel, source: Path) -> int:
        """Let a model use the trunk for as many of its lowest layers as are the SFT model's own, and return their
        number. It is then read from the trunk's states."""
        alike = 0 if has_members(source) else share_below(model, self.model, self.depth)
        n = min(alike, len(layers_of(model)[1]) - 1)
        if n > 0:
            self.layers.add(n)
            read_above(model, n)
        logger.info("ppo: %d of the %d layers of the trunk are also the reward model's", n, self.depth)
        return n

    def read(self, rollout: Rollout, config: PpoConfig, rows: RowsAtOnce, directory: Path | None) -> Rollout:
        """Read all texts of a rollout once; it then carries the states that enter the layers above the trunk."""
        dtype = torch.bfloat16 if config.trunk_states == "bfloat16" else self.model.dtype
        lengths = rollout.prompt_mask.sum(1) + rollout.lengths
        hidden = self.model.config.get_text_config().hidden_size
        limit = config.trunk_memory * 2**30
        room = room_for_states(lengths, sorted(self.layers), hidden, dtype, self.model.device, limit, directory)

        def read(rows_at_once: int) -> None:
            # Texts of similar length share a pass.
            for batch in lengths.argsort(stable=True).split(rows_at_once):
                read_below(self.model, rollout, batch, room)

        with cast_frozen(self.model):
            rows.do(read)
        return rollout._replace(below=room)
