"""Records, published data formats, chat templates, mixtures and splits. Needs no torch."""

from data_schema.errors import DataError
from data_schema.few_shot import ChainOfThought, FewShot
from data_schema.files import read_records, read_rows, write_records
from data_schema.held_out import HeldOutTasks
from data_schema.mixtures import Mixture
from data_schema.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Record,
    from_dict,
    prompt_messages,
    prompt_text,
    to_dict,
)
from data_schema.sources import Source, fingerprint, load, load_all
from data_schema.splits import assert_disjoint, dedup_prompts, split
from data_schema.table import Records
from data_schema.templates import TEMPLATES, Template, template

__all__ = [
    "TEMPLATES",
    "ChainOfThought",
    "Comparison",
    "DataError",
    "Demonstration",
    "Document",
    "FewShot",
    "HeldOutTasks",
    "Message",
    "Mixture",
    "Prompt",
    "Record",
    "Records",
    "Source",
    "Template",
    "assert_disjoint",
    "dedup_prompts",
    "fingerprint",
    "from_dict",
    "load",
    "load_all",
    "prompt_messages",
    "prompt_text",
    "read_records",
    "read_rows",
    "split",
    "template",
    "to_dict",
    "write_records",
]
