"""The folder: graphs of a proved bundle under optimum's names, with the configs of their components."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgediff.bundle.reading import read_bundle
from edgediff.errors import ArgumentError, BundleError, choices

from ..convert import DEFAULT, export
from ..lora.file import read_lora
from ..manifest import DRAFT_MANIFEST
from ..onnx_graph.graph import Graph, read_graph, write_graph
from ..sources.base import Source, encoders_of
from ..sources.modified import ModifiedSource
from ..sources.open import open_source
from ..workspace import Workspace
from .graphs import decoder_graph, encoder_graph, unet_graph
from .text_encoder import write_text_encoder

MODEL, INDEX = "model.onnx", "model_index.json"
PRECISIONS = ("fp32", "fp16-weights", "int8", "int8-dynamic")
SETTINGS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")


def export_optimum(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = DEFAULT,
    part_precision: Mapping[str, str] | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    config: str | Path | None = None,
    vae: str | Path | None = None,
    prediction_type: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    bar: bool = False,
    **others: Any,
) -> Path:
    """Export a checkpoint to a folder in optimum's layout, whole or not at all; it is proved as a bundle first.

    Args:
        source, out, part_precision, loras, config, vae, prediction_type, report, bar: as ``export``.
        precision: one of ``PRECISIONS``; fp16's second graph has no place in this layout.
        others: arguments of ``export`` that this layout has no place for; they must be empty.

    Raises:
        ArgumentError: one of ``others``, or another precision.
        BundleError: a model without text or autoencoder, which optimum has no pipeline for.
        OutputError, EngineError: as ``export``.
    """
    for asked in (precision, *(part_precision or {}).values()):
        if asked not in PRECISIONS:
            raise ArgumentError(f"no precision {asked!r} in optimum's layout; choose from {choices(PRECISIONS)}")
    if given := [name for name, value in others.items() if value]:
        raise ArgumentError(f"{given[0]} is {others[given[0]]!r}; optimum's layout has no place for it")
    source, out = Path(source), Path(out)
    Workspace(out, "optimum")  # whether it can be written
    opened: Source = open_source(source, None if config is None else Path(config), prediction_type)
    if vae is not None or loras:
        components = {} if vae is None else {"vae": Path(vae)}
        opened = ModifiedSource(opened, components, [read_lora(path, weight) for path, weight in loras])
    for there, what in ((opened.has("vae"), "autoencoder"), (encoders_of(opened), "text encoder")):
        if not there:
            raise BundleError(f"{source} has no {what}; optimum has no pipeline without one")

    def layout(bundle: Path, folder: Path) -> None:
        report("optimum's layout")
        _write(opened, bundle, folder)

    return export(
        source,
        out,
        precision=precision,
        part_precision=part_precision,
        loras=loras,
        config=config,
        vae=vae,
        prediction_type=prediction_type,
        report=report,
        bar=bar,
        layout=layout,
    )


def _write(source: Source, bundle_folder: Path, out: Path) -> None:
    """Write every component's folder, and the index."""
    bundle = read_bundle(bundle_folder, DRAFT_MANIFEST)
    latent, large = bundle.latent, bundle.kind == "stable-diffusion-xl"
    hollow: Callable[[str], Any] = source.hollow
    for (encoder, tokenizer), text, part in zip(encoders_of(source), bundle.text, bundle.text_encoders, strict=True):
        precision = bundle.parts[part].files[0].precision
        (out / encoder).mkdir(parents=True)
        write_text_encoder(source, encoder, out / encoder / MODEL, precision, text.max_length, large)
        hollow(encoder).config.save_pretrained(str(out / encoder))
        source.tokenizer(tokenizer).save_pretrained(str(out / tokenizer))
    sizes = {t.name: list(t.shape) for t in bundle.parts["unet"].inputs}
    graphs: dict[str, Callable[[Graph], Graph]] = {
        "unet": lambda graph: unet_graph(graph, sizes),
        "vae_decoder": lambda graph: decoder_graph(graph, latent.channels, latent.factor),
        "vae_encoder": lambda graph: encoder_graph(graph, latent.channels, latent.factor),
    }
    for part, rewired in graphs.items():
        (out / part).mkdir(parents=True)
        graph = read_graph(bundle_folder / bundle.parts[part].files[0].path)
        write_graph(rewired(graph), out / part / MODEL)
        hollow("unet" if part == "unet" else "vae").save_config(str(out / part))
    scheduler = source.scheduler()
    _write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(out / INDEX, _index(source, str(scheduler["_class_name"])))


def _index(source: Source, scheduler: str) -> dict[str, Any]:
    """``model_index.json``: the pipeline's class, and that of each component."""
    classes: dict[str, Any] = {"scheduler": ["diffusers", scheduler], "safety_checker": [None, None]}
    for component in ("text_encoder", "text_encoder_2", "unet", "vae"):
        library = "transformers" if component.startswith("text") else "diffusers"
        if source.has(component):
            classes[component] = [library, type(source.hollow(component)).__name__]
    classes |= {tokenizer: ["transformers", "CLIPTokenizer"] for _, tokenizer in encoders_of(source)}
    settings = {name: value for name in SETTINGS if (value := source.setting(name)) is not None}
    return {"_class_name": source.pipeline, **classes, "feature_extractor": [None, None], **settings}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, default=list) + "\n", encoding="utf-8")
