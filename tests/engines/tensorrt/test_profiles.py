"""Profiles and build options: which shapes an engine takes, from a bundle's symbolic ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle.reading import read_bundle
from edgediff.engines.tensorrt.options import BuildOptions, read_options
from edgediff.engines.tensorrt.profiles import Ranges, profile, why_not_shapes
from edgediff.errors import ArgumentError


def test_from_symbolic_shapes(half_bundle: Path) -> None:
    bundle = read_bundle(half_bundle)
    assert profile(bundle, "unet", Ranges()) == {
        "sample": ((1, 4, 4, 4), (2, 4, 8, 8), (2, 4, 12, 12)),
        "timestep": ((1,), (2,), (2,)),
        "encoder_hidden_states": ((1, 77, 32), (2, 77, 32), (2, 231, 32)),
    }
    wide = Ranges(images=4, least=(16, 32), best=(64, 32), most=(64, 64))
    assert profile(bundle, "vae_decoder", wide) == {"latent_sample": ((1, 4, 8, 4), (4, 4, 8, 16), (4, 4, 16, 16))}
    assert profile(bundle, "text_encoder", wide)["input_ids"] == ((1, 77), (2, 77), (24, 77))


def test_every_family(family_bundle: Any) -> None:
    for name in ("sdxl", "lcm", "inpaint", "pixel"):
        bundle = read_bundle(family_bundle(name))
        for part in bundle.needed:
            made = profile(bundle, part, Ranges(images=2))
            assert made.keys() == {t.name for t in bundle.parts[part].inputs}
            for tensor in bundle.parts[part].inputs:
                for shape in made[tensor.name]:
                    assert all(isinstance(s, str) or s == v for s, v in zip(tensor.shape, shape, strict=True))
    assert profile(read_bundle(family_bundle("lcm")), "unet", Ranges(images=2))["timestep"] == ((1,), (2,), (2,))
    assert profile(read_bundle(family_bundle("sdxl")), "unet", Ranges())["time_ids"] == ((1, 6), (2, 6), (2, 6))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"least": (30, 32)}, "size 30x32: both must be multiples of 4"),
        ({"least": (64, 64), "best": (32, 32)}, "sizes 64x64, 32x32, 48x48: the least must not be above"),
        ({"most": (8, 8)}, "the least must not be above"),
    ],
)
def test_bad_sizes(half_bundle: Path, ranges: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        profile(read_bundle(half_bundle), "unet", Ranges(**ranges))


def test_bad_numbers() -> None:
    with pytest.raises(ArgumentError, match=r"images is 0; it must be 1 \.\. 64"):
        Ranges(images=0)
    with pytest.raises(ArgumentError, match="no hardware compatibility 'all'; choose from none, ampere_plus"):
        BuildOptions(hardware="all")
    with pytest.raises(ArgumentError, match=r"level is 9; it must be 0 \.\. 5"):
        BuildOptions(level=9)
    with pytest.raises(ArgumentError, match="workspace is -1; it must be a number of bytes"):
        BuildOptions(workspace=-1)


def test_shapes_outside(half_bundle: Path) -> None:
    made = profile(read_bundle(half_bundle), "vae_decoder", Ranges())
    assert why_not_shapes(made, {"latent_sample": (1, 4, 8, 8)}) == ""
    for shape in ((2, 4, 8, 8), (1, 4, 13, 8), (1, 4, 8)):
        assert f"latent_sample is {list(shape)}" in why_not_shapes(made, {"latent_sample": shape})


def test_scalars_of_numpy_become_json() -> None:
    options = BuildOptions(Ranges(images=np.int64(2)), workspace=np.int64(1 << 30), level=np.int64(3))  # type: ignore[arg-type]
    data = json.loads(json.dumps(asdict(options)))
    assert read_options(data) == BuildOptions(Ranges(images=2), workspace=1 << 30, level=3)
