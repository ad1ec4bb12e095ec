"""LoRA files of strangers: whatever is in them, the error is typed, and no pattern, header or pipe takes for ever."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from edgediff import EdgediffError
from edgediff.errors import ArgumentError, BundleError
from edgediff_export.lora.file import read_lora
from edgediff_export.lora.merging import check, merge
from edgediff_export.lora.opened import MAX_HEADER


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Conv2d(3, 4, 3)


def tensors(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {"unet.a.lora_A.weight": torch.ones(2, 6), "unet.a.lora_B.weight": torch.ones(4, 2)}
    found |= {"unet.b.lora_A.weight": torch.ones(3, 3, 3, 3), "unet.b.lora_B.weight": torch.ones(4, 3, 1, 1)}
    return found | {name.replace("__", "."): value for name, value in more.items()}


def written(folder: Path, data: dict[str, torch.Tensor] | bytes, settings: Any = None) -> Path:
    path = folder / "lora.safetensors"
    metadata = None if settings is None else {"lora_adapter_metadata": json.dumps(settings)}
    path.write_bytes(data if isinstance(data, bytes) else save(data, metadata))
    return path


def merged(path: Path) -> int:
    with torch.device("meta"):
        hollow = Model()
    lora = read_lora(path)
    check([lora], {"unet": hollow})
    return merge([lora], "unet", Model())


def test_the_file_as_it_is(tmp_path: Path) -> None:
    assert merged(written(tmp_path, tensors(), {"unet.lora_alpha": 2, "unet.alpha_pattern": {"b": 3}})) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unet.lora_alpha": 10**400}, "not PEFT's settings"),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"(a+)+$": 1}}, "may take long to match"),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"a*a*a*b": 1}}, "may take long to match"),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {r"(a)\1": 1}}, "may take long to match"),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"a" * 300: 1}}, "may take long to match"),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {str(k): 1 for k in range(3000)}}, "has 3000 entries"),
    ],
)
def test_settings_that_take_long_or_mean_nothing(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        read_lora(written(tmp_path, tensors(), settings))


def test_settings_that_lie_too_deep(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save(tensors(), {"lora_adapter_metadata": '{"unet.r":' + "[" * 100_000}))
    with pytest.raises(BundleError, match="not PEFT's settings"):
        read_lora(path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"unet__a__lora_A__weight": torch.tensor(1.0)}, "does not fit"),
        (
            {"unet__a__lora_A__weight": torch.zeros(0, 6), "unet__a__lora_B__weight": torch.zeros(4, 0)},
            "zero|does not fit",
        ),
        ({"unet__a__lora_A__weight": torch.ones(2, 6, dtype=torch.complex64)}, "must hold real numbers"),
        ({"unet__a__lora_A__weight": torch.ones(2, 6, dtype=torch.bool)}, "must hold real numbers"),
        ({"unet__a__alpha": torch.ones(3)}, "does not fit"),
        ({"unet__a__alpha": torch.tensor(float("nan"))}, "its alpha is nan"),
    ],
)
def test_tensors_that_cannot_be_merged(tmp_path: Path, more: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        merged(written(tmp_path, tensors(**more)))


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    path = written(tmp_path, (MAX_HEADER + 1).to_bytes(8, "little") + b"{")
    with path.open("ab") as f:
        f.truncate(MAX_HEADER + 1000)
    with pytest.raises(BundleError, match=f"a LoRA's has at most {MAX_HEADER}"):
        read_lora(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lora.safetensors")
    with pytest.raises(BundleError):
        read_lora(tmp_path / "lora.safetensors")


def test_mutated_files(tmp_path: Path) -> None:
    """400 files with bits, bytes and pieces changed, most in the header: a merge, or a typed error, each at once."""
    raw = save(tensors(), {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {"b": 3}})})
    header = 8 + int.from_bytes(raw[:8], "little")
    chosen, ends, longest = random.Random(0), {"merged": 0, "refused": 0}, 0
    for _ in range(400):
        data = bytearray(raw)
        for _ in range(chosen.choice((1, 1, 2, 4))):
            at = chosen.randrange(header if chosen.random() < 0.8 else len(data))
            change = chosen.randrange(4)
            if change == 0:
                data[at] ^= 1 << chosen.randrange(8)
            elif change == 1:
                data[at] = chosen.randrange(256)
            elif change == 2:
                del data[at : at + chosen.choice((1, 4, 100))]
            else:
                data[at:at] = data[max(0, at - 50) : at]
        started = time.process_time()
        try:
            merged(written(tmp_path, bytes(data)))
            ends["merged"] += 1
        except EdgediffError as error:
            ends["refused"] += 1
            longest = max(longest, len(str(error)))
        assert time.process_time() - started < 2
    assert min(ends.values()) > 20
    assert longest < 2000
