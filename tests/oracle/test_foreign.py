"""What other libraries say of foreign folders: diffusers of schedulers' defaults, transformers of CLIP's tokenizer."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest

from edgediff.bundle.foreign.scheduler_defaults import DEFAULTS
from edgediff.bundle.scheduler_config import NEUTRAL
from edgediff.prompts.tokenizer import Tokenizer
from edgediff.sampling.names import DIFFUSERS
from edgediff.sampling.schedule import Schedule
from edgediff_export.sources.clip_tokenizer import clip_tokenizer

# Settings that the mapping of a config reads, beside those of the schedule.
READ = {*NEUTRAL, "solver_order", "algorithm_type", "solver_type", "predict_x0", "disable_corrector", "skip_prk_steps",
        "variance_type", "original_inference_steps", "timestep_scaling", "use_karras_sigmas", "use_exponential_sigmas",
        "clip_sample", "clip_sample_range", *(f.name for f in dataclasses.fields(Schedule))}  # fmt: skip
PROMPTS = (
    *(
        "a red apple",
        "A  RED\tApple!!",
        "it's 2024, isn't it?",
        "naïve café 東京 ИЖ",
        "a,b;c -- (d)",
        "\U0001f34e\U0001f600",
    ),
    *("<|startoftext|>inside<|endoftext|>", "!", "", " ", "e\u0301 composed", "x" * 300, "don't we'll I'd they've"),
)


def signature(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    """Newer versions may take further settings; those that are read must be known."""
    told = signature(name)
    assert {k: v for k, v in DEFAULTS[name].items() if k in told} == {
        k: v for k, v in told.items() if k in DEFAULTS[name]
    }
    assert not {k for k in told if k in READ} - set(DEFAULTS[name])


def test_every_class_with_betas_that_has_a_sampler_is_known() -> None:
    assert {name for name in DIFFUSERS if "beta_start" in signature(name)} <= set(DEFAULTS)


def written(pad: str, folder: Path) -> Any:
    """CLIP's own 49,408 tokens, with all files that a folder may hold."""
    tokenizer = clip_tokenizer(pad)
    tokenizer.save_pretrained(str(folder))
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    return tokenizer


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_a_tokenizer_reads_as_transformers_does(pad: str, file: str, tmp_path: Path) -> None:
    theirs = written(pad, tmp_path)
    ours = Tokenizer(tmp_path / file, 77, theirs.pad_token_id)
    assert (ours.begin, ours.end) == (theirs.bos_token_id, theirs.eos_token_id)
    for prompt in PROMPTS:
        assert [i for i, _ in ours.tokens(prompt)] == theirs(prompt, add_special_tokens=False)["input_ids"], prompt


def test_older_files_without_their_special_tokens(tmp_path: Path) -> None:
    theirs = written("<|endoftext|>", tmp_path)
    for path in [p for p in tmp_path.iterdir() if p.name not in ("vocab.json", "merges.txt")]:
        path.unlink()
    ours = Tokenizer(tmp_path / "vocab.json", 77, theirs.pad_token_id)
    assert (ours.begin, ours.end) == (theirs.bos_token_id, theirs.eos_token_id)
    for prompt in PROMPTS:
        assert [i for i, _ in ours.tokens(prompt)] == theirs(prompt, add_special_tokens=False)["input_ids"], prompt
