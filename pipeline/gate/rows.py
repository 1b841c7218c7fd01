"""The rows that the checks before a run look at, each source read and each row encoded once."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_schema import Records, Source, load_all
from data_schema.locations import HubLocation, PythonLocation, locate
from stages.data_checks.findings import Finding
from stages.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FUNCTION_ROWS = 1000  # checked of a Python function, which may be slow or endless, unless an error depends on the rest
QUIET = ("triptych.data", "triptych.sft")  # the stages log the same again


class TooFew(ConfigError):
    """Rows are missing; further rows of a source that was cut could change that."""


class Rows:
    """Reads sources and encodes their rows, and collects what is to be said about them."""

    def __init__(self, seed: int, run_code: bool) -> None:
        self.seed = seed
        self.run_code = run_code  # whether Python functions may be called
        self.whole = False  # read Python functions to their end
        self.cut = False  # whether one was not, since this was last set to False
        self.warnings: list[str] = []
        self.not_seen: list[str] = []  # settings whose data could not be looked at
        self._loaded: dict[tuple[str, type], Records[Any]] = {}
        self._lengths: dict[tuple[str, type, int], array[int]] = {}

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def sources(self, setting: str, sources: Sequence[Source], cut: bool = True) -> list[Source] | None:
        """The sources as they are to be read; None if one of them cannot be: a data set on the hub that is not in the
        local cache, or a Python function where no code may run."""
        found = []
        once: set[str] = set()
        for source in sources:
            location = locate(source.path)
            path = os.path.realpath(os.path.expanduser(source.path))
            if (given := repr(replace(source, path=path, weight=None, templates=1))) in once:
                raise ConfigError(
                    f"{setting}: '{source.path}' is given twice, so each of its rows would count twice; "
                    "remove one; to use its rows more often, give it a weight in a mixture (docs/mixtures.md)"
                )
            once.add(given)
            is_function = isinstance(location, PythonLocation)
            if (is_function and not self.run_code) or (
                isinstance(location, HubLocation) and not in_cache(location.name)
            ):
                self.not_seen.append(setting)
                return None
            if is_function and cut and not self.whole and (source.limit is None or source.limit > FUNCTION_ROWS):
                source, self.cut = replace(source, limit=FUNCTION_ROWS), True
            found.append(source)
        return found

    def load(self, sources: Sequence[Source], kind: type) -> Records[Any]:
        """The records of the sources, in their order."""
        if (place := (repr(sources), kind)) not in self._loaded:
            with quiet():
                self._loaded[place] = load_all(sources, kind, self.seed)
        return self._loaded[place]

    def lengths(
        self, setting: str, records: Records[Any], kind: type, tokenizer: PreTrainedTokenizerBase
    ) -> Sequence[int]:
        """Each row's length in tokens; of a comparison the prompt with its longest answer. Raises ConfigError for the
        first error in the rows; warnings are collected."""
        from stages.data_checks.row_tokens import token_lengths

        if (place := (records.fingerprint, kind, id(tokenizer))) not in self._lengths:
            lengths, findings = token_lengths(records, kind, tokenizer)
            source = next(iter(records)).source if len(records) else ""
            for finding in findings:
                self.take(f"{setting} ({source})" if source else setting, finding)
            self._lengths[place] = lengths.whole
        return self._lengths[place]

    def pair_lengths(
        self, setting: str, records: Records[Any], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[int, int]]:
        """Each demonstration's (tokens for the encoder, tokens for the decoder). Raises ConfigError for the first one
        that cannot be encoded."""
        from policy.errors import ModelError
        from policy.seq2seq import encode_pairs

        lengths = []
        for record in records:
            try:
                [pair] = encode_pairs(tokenizer, [record.messages])
            except ModelError as error:
                raise ConfigError(f"{setting} ({record.source}): {record.id}: {error}") from error
            lengths.append((len(pair.prompt), len(pair.answer)))
        return lengths

    def take(self, where: str, finding: Finding) -> None:
        """Raise ConfigError for an error; collect a warning."""
        examples = f" ({', '.join(finding.examples)})" if finding.examples else ""
        line = f"{where}: {finding.text}{examples}; {finding.cure}"
        if finding.severity == "error":
            raise ConfigError(line)
        if finding.severity == "warning":
            self.warn(line)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave to the stages what they will log about their data."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def in_cache(name: str) -> bool:
    """Whether a data set of the hub has been downloaded and prepared."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    return (cache / name.replace("/", "___")).is_dir()
