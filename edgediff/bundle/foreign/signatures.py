"""Which tensors of a foreign graph stand for which of a part's, by the names that exporters give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BundleError, choices
from ...looks import stand_in
from ..onnx_file.header import GraphHeader, Port
from ..onnx_file.locations import check_graph
from .adaptation import Adaptation, Given

MODEL = "model.onnx"
FLOATS, INTEGERS = ("float32", "float16", "float64"), ("int64", "int32")
MAX_CLIP_SKIP = 4  # as the exporter offers
UNET_INPUTS = {
    "sample": FLOATS,
    "timestep": (*FLOATS, *INTEGERS),
    "encoder_hidden_states": FLOATS,
    "text_embeds": FLOATS,
    "time_ids": FLOATS,
    "timestep_cond": FLOATS,
}
UNET_NEEDS = ("sample", "timestep", "encoder_hidden_states")
RANKS = {"sample": (4,), "timestep": (0, 1), "encoder_hidden_states": (3,), "input_ids": (2,), "latent_sample": (4,),
         "text_embeds": (2,), "time_ids": (2,), "timestep_cond": (2,)}  # fmt: skip
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")


def unet(root: Path) -> Adaptation:
    """The U-Net's; ``BundleError`` for one that is told something that this version does not know."""
    header = header_of(root, "unet")
    inputs = _inputs("unet", header, UNET_INPUTS, UNET_NEEDS)
    return Adaptation("unet", header, inputs, {"out_sample": _only("unet", header, "out_sample", "sample")})


def text_encoder(root: Path, folder: str, config: Mapping[str, Any], large: bool, pooled: bool) -> Adaptation:
    """A text encoder's.

    Args:
        config: its config.json.
        large: SDXL's, whose U-Net reads the last state but one.
        pooled: whether the U-Net reads this one's pooled state.
    """
    header = header_of(root, folder)
    inputs = _inputs(folder, header, {"input_ids": INTEGERS}, ("input_ids",))
    outputs = {port.name: port for port in header.outputs}
    given: dict[str, Given] = {}
    if large:
        given = _earlier_states(root, folder, config, outputs)
    else:
        given["last_hidden_state"] = Given(_named(folder, outputs, "last_hidden_state"))
    if pooled:
        given["text_embeds"] = Given(_named(folder, outputs, "text_embeds", "pooler_output"))
    for one in given.values():
        _check_type(folder, one.port, FLOATS)
    return Adaptation(folder, header, inputs, given)


def _earlier_states(
    root: Path, folder: str, config: Mapping[str, Any], outputs: Mapping[str, Port]
) -> dict[str, Given]:
    """SDXL's states, counted from the last but one: ``hidden_states.{N-1}`` of N layers, and those before it."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise BundleError(
            f"{root / folder}: config.json says num_hidden_layers {layers!r}; it tells which of the hidden states is "
            "the last but one, which SDXL reads"
        )
    if f"hidden_states.{layers - 1}" not in outputs:
        raise BundleError(
            f"{root / folder / MODEL} gives {choices(outputs)}; SDXL reads hidden_states.{layers - 1}, the last state "
            "but one: export it again with output_hidden_states"
        )
    given = {"last_hidden_state": Given(outputs[f"hidden_states.{layers - 1}"])}
    for skip in range(1, min(MAX_CLIP_SKIP, layers - 1) + 1):
        if (port := outputs.get(f"hidden_states.{layers - 1 - skip}")) is not None:
            given[f"hidden_state_{skip}"] = Given(port)
    return given


def vae_decoder(root: Path) -> Adaptation:
    header = header_of(root, "vae_decoder")
    inputs = _inputs("vae_decoder", header, {"latent_sample": FLOATS}, ("latent_sample",))
    return Adaptation("vae_decoder", header, inputs, {"sample": _only("vae_decoder", header, "sample")})


def vae_encoder(root: Path) -> Adaptation:
    """The VAE encoder's: mean and log variance lie in one tensor, or latents are given alone.

    Raises:
        BundleError: it draws from its latents itself, by random numbers that no seed gives again.
    """
    header = header_of(root, "vae_encoder")
    inputs = _inputs("vae_encoder", header, {"sample": FLOATS}, ("sample",))
    if drawn := sorted(name for _, name in header.operators if name in RANDOM):
        raise BundleError(
            f"{root / 'vae_encoder' / MODEL} draws its latents itself ({drawn[0]}), which no seed gives again; export "
            "it again with an exporter that gives latent_parameters"
        )
    outputs = {port.name: port for port in header.outputs}
    if (both := outputs.get("latent_parameters")) is not None:
        _check_type("vae_encoder", both, FLOATS)
        given = {"latent_mean": Given(both, 0), "latent_logvar": Given(both, 1)}
    else:
        given = {"latent_mean": Given(_named("vae_encoder", outputs, "latent_sample", "latent"))}
    return Adaptation("vae_encoder", header, inputs, given)


def header_of(root: Path, folder: str) -> GraphHeader:
    """Read the header of a part's graph; files that it names must lie in its folder.

    Raises:
        BundleError, BundleNotFoundError: the graph or its weights are missing or damaged, or lie elsewhere.
    """
    place = root / folder
    header, needed = check_graph(root, place / MODEL)
    for name, size in needed.items():
        inside = name.removeprefix(f"{folder}/")
        if not (root / name).is_file():
            raise BundleError(f"{place / MODEL} keeps weights in {inside}, which is missing")
        if wrong := stand_in(root / name):
            raise BundleError(f"{place / MODEL} keeps weights in {inside}, which is {wrong}")
        if size > (there := (root / name).stat().st_size):
            raise BundleError(f"{place / MODEL} reads {inside} up to byte {size}; it has {there}")
    return header


def _inputs(
    folder: str, header: GraphHeader, known: Mapping[str, tuple[str, ...]], needed: tuple[str, ...]
) -> dict[str, Port]:
    inputs = {port.name: port for port in header.inputs}
    if unknown := [name for name in inputs if name not in known]:
        raise BundleError(
            f"{folder}/{MODEL} takes {unknown[0]!r}, which this version cannot give; it gives {choices(known)}"
        )
    if missing := [name for name in needed if name not in inputs]:
        raise BundleError(f"{folder}/{MODEL} takes {choices(inputs) or 'nothing'}; {missing[0]} is not among them")
    for name, port in inputs.items():
        _check_type(folder, port, known[name])
        if port.shape != ("?",) and len(port.shape) not in RANKS[name]:
            raise BundleError(
                f"{folder}/{MODEL} takes {port}; it must have {choices(map(str, RANKS[name]))} dimensions"
            )
    batches = {p.shape[0] for n, p in inputs.items() if n != "timestep" and p.shape and isinstance(p.shape[0], int)}
    if len(batches) > 1:
        raise BundleError(f"{folder}/{MODEL} takes batches of {choices(map(str, sorted(batches)))} at once")
    return inputs


def _only(folder: str, header: GraphHeader, *names: str) -> Given:
    outputs = {port.name: port for port in header.outputs}
    port = header.outputs[0] if len(outputs) == 1 else _named(folder, outputs, *names)
    _check_type(folder, port, FLOATS)
    return Given(port)


def _named(folder: str, outputs: Mapping[str, Port], *names: str) -> Port:
    """The first of these outputs that there is."""
    for name in names:
        if name in outputs:
            return outputs[name]
    raise BundleError(f"{folder}/{MODEL} gives {choices(outputs)}; {' or '.join(names)} is not among them")


def _check_type(folder: str, port: Port, types: tuple[str, ...]) -> None:
    if port.dtype not in types:
        raise BundleError(f"{folder}/{MODEL}: {port.name} is of type {port.dtype}; this version takes {choices(types)}")
