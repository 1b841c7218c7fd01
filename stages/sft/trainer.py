"""SFT's batches of packed rows and pretraining text, and the trainer for them, based on TRL's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from policy.language_model import bare
from policy.maths.logprobs import token_logprobs_from_hidden
from policy.reading.body import body_of
from policy.reading.packing import one_a_row, pack_lengths
from policy.reading.ways import reading_of
from policy.sampling.rollout import output_head
from stages.trainer import SortedWithinBatches

IGNORED = -100  # the label of a token without loss


class PackingCollator:
    """Demonstrations -> rows with several of them each (or one each), as wide as the longest demonstration.

    Positions restart at 0 with each demonstration, which is how the model separates them; padding counts as
    demonstrations of one token. A demonstration's first token has no loss, because nothing of its own precedes it.
    Pretraining text, marked by `is_text`, is packed in the same way."""

    def __init__(self, pad_id: int, packed: bool) -> None:
        self.pad_id, self.packed = pad_id, packed

    def __call__(self, demonstrations: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in demonstrations]
        places = (pack_lengths if self.packed else one_a_row)(lengths)
        ids = torch.full((places.n_rows, places.width), self.pad_id)
        labels, positions = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        is_text = torch.zeros_like(ids, dtype=torch.bool)
        for row, at, begin, length in zip(demonstrations, places.row, places.column, lengths, strict=True):
            here = slice(begin, begin + length)
            ids[at, here] = torch.tensor(row["input_ids"])
            labels[at, here] = torch.tensor(row["labels"])
            labels[at, begin] = IGNORED
            positions[at, here] = torch.arange(length)
            is_text[at, here] = row.get("is_text", False)
        if places.n_rows == len(lengths):  # one per row: causal attention never reads the padding after a text
            positions = torch.arange(places.width).expand(places.n_rows, -1)
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions, "n_tokens": torch.tensor(sum(lengths))}
        return batch | ({"is_text": is_text} if "is_text" in demonstrations[0] else {})


class MixedBatches(Sampler[int]):
    """Samples batches of demonstrations and pretraining text; the rows of a batch are sorted by length.

    The first t batches contain `floor(t * batch * share)` rows of text, so the share is right over the run, and within
    one row in each batch. Both kinds are drawn without replacement, in a new order each pass. Demonstrations are the
    rows [0, n_demonstrations), text the others. One iteration over the sampler is the whole run."""

    def __init__(
        self, lengths: Sequence[int], n_demonstrations: int, batch: int, steps: int, share: float, seed: int
    ) -> None:
        self.lengths, self.batch, self.steps, self.share = torch.tensor(lengths), batch, steps, share
        self.n_demonstrations, self.seed = n_demonstrations, seed

    def text_rows(self, steps: int) -> int:
        """Rows of text in the first `steps` batches."""
        return int(steps * self.batch * self.share + 1e-9)

    def __iter__(self) -> Iterator[int]:
        rng = torch.Generator().manual_seed(self.seed)
        demonstrations = _endless(range(self.n_demonstrations), rng)
        texts = _endless(range(self.n_demonstrations, len(self.lengths)), rng)
        for step in range(self.steps):
            n_text = self.text_rows(step + 1) - self.text_rows(step)
            rows = [next(demonstrations) for _ in range(self.batch - n_text)] + [next(texts) for _ in range(n_text)]
            chosen = torch.tensor(rows)
            yield from chosen[self.lengths[chosen].argsort(stable=True)].tolist()

    def __len__(self) -> int:
        return self.steps * self.batch


def _endless(rows: range, rng: torch.Generator) -> Iterator[int]:
    while True:
        yield from (rows[i] for i in torch.randperm(len(rows), generator=rng).tolist())


def with_text(demonstrations: Any, texts: Tensor) -> Any:
    """Demonstrations and rows of pretraining text (n, length) in one datasets.Dataset, with a column `is_text`."""
    from datasets import Dataset, concatenate_datasets

    rows = Dataset.from_dict({"input_ids": texts.numpy(), "labels": texts.numpy()}, features=demonstrations.features)
    return concatenate_datasets(
        [part.add_column("is_text", np.full(len(part), kind)) for part, kind in ((demonstrations, False), (rows, True))]
    )


class DemonstrationTrainer(SFTTrainer):
    """TRL's trainer for packed rows. Demonstrations of similar length share a forward pass, but each optimiser step is
    a random sample. Logits are computed only for tokens with loss, on every device. TRL does so only where Triton is
    available; elsewhere, with a large vocabulary, the prompts' logits would be most of the cost."""

    tokens_read = 0
    text_nats = 0.0  # loss of pretraining text, summed since the last log entry
    text_tokens = 0
    mixed: MixedBatches | None = None  # set if there is pretraining text

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if self.mixed is not None:
            return self.mixed
        lengths = [len(row) for row in self.train_dataset["input_ids"]]
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return SortedWithinBatches(lengths, rows_per_step, self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        self.tokens_read += int(inputs.pop("n_tokens"))
        is_text = inputs.pop("is_text", None)
        fused = not self.aux_loss_enabled and trl_computes_exactly(bare(self.model))

        def measured(labels: Tensor, **batch: Any) -> Any:
            if not self.data_collator.packed:  # some models count positions in another way (RoBERTa)
                del batch["position_ids"]
            learned = labels[:, 1:] != IGNORED
            given: list[Tensor] = []

            def keep_learned(body: Any, inputs: Any, states: Any) -> None:
                if given:  # the body is also called to go from these states to logits
                    return
                given.append(states.last_hidden_state[:, :-1][learned])
                states.last_hidden_state = (given[0] if fused else given[0][:1]).unsqueeze(0)

            hook = body_of(bare(self.model)).register_forward_hook(keep_learned)
            try:
                if fused:
                    outputs = model(**batch, shift_labels=labels[:, 1:][learned].unsqueeze(0))
                else:
                    model(**{name: value for name, value in batch.items() if name != "fused_lm_head"})
            finally:
                hook.remove()
            if not fused:
                outputs = own_outputs(bare(self.model), given[0], labels[:, 1:][learned])
            if is_text is not None:
                text = is_text[:, 1:][learned]
                self.text_nats -= float(outputs.log_probs.detach()[0, text].sum())
                self.text_tokens += int(text.sum())
            return outputs

        loss = super().compute_loss(measured, inputs, *arguments, **named)
        self._metrics["train"]["num_tokens"] = [self.tokens_read]  # TRL would count packed rows as one row
        return loss

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        if self.text_tokens:
            logs["pretraining_loss"] = self.text_nats / self.text_tokens
            self.text_nats, self.text_tokens = 0.0, 0
        super().log(logs, *arguments, **named)


class OwnOutputs(NamedTuple):
    """What TRL's trainer reads of a forward pass; tensors (1, tokens with loss)."""

    log_probs: Tensor
    entropy: Tensor
    is_top1: Tensor
    label_mask: Tensor
    aux_loss: Tensor


def trl_computes_exactly(model: PreTrainedModel) -> bool:
    """Whether TRL's fused head gives this model's own loss. It is sure to where logits are a weight times the states
    and the config has neither experts nor a scale or cap of logits, which TRL applies even if the model does not."""
    config = vars(model.config.get_text_config())
    routed = any(config.get(name) for name in ("num_experts_per_tok", "num_local_experts", "n_routed_experts"))
    scaled = any(
        value not in (None, False, 1) for name, value in config.items() if "logit" in name or "soft_cap" in name
    )
    return reading_of(model, longest=0).logits == "head" and not routed and not scaled


def own_outputs(model: PreTrainedModel, hidden: Tensor, labels: Tensor) -> OwnOutputs:
    """The same from states (tokens, hidden) by the way of this model from states to logits. A loss on the balance of
    experts is not added."""
    head = output_head(model)
    found = token_logprobs_from_hidden(hidden, head, labels)
    with torch.no_grad():
        parts = hidden.split(1024)
        first = torch.cat([(part @ head.T if isinstance(head, Tensor) else head(part)).argmax(-1) for part in parts])
    mask = torch.ones_like(labels, dtype=torch.bool)
    columns = (found.logprobs, found.entropy.detach(), first == labels, mask)
    log_probs, entropy, is_top1, label_mask = (column.unsqueeze(0) for column in columns)
    return OwnOutputs(log_probs, entropy, is_top1, label_mask, aux_loss=hidden.new_zeros(()))


class CandidateCallback(TrainerCallback):
    """Calls `keep(model, step)` after the given steps."""

    def __init__(self, steps: Collection[int], keep: Callable[[Any, int], None]) -> None:
        self.steps, self.keep = steps, keep

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.keep(kwargs["model"], state.global_step)
            kwargs["model"].train()
