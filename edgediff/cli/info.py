"""``edgediff info`` shows a bundle's parts, and what would run them here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..bundle.manifest import HASH_LIMIT, Bundle, File, Tensor
from ..bundle.reading import read_bundle
from ..device.cuda.machine_code import describe_code
from ..engines.base import EngineOptions, check_device, why_not_file
from ..engines.choose import survey, walk
from ..engines.isolation.backend import memory_of
from ..engines.isolation.limits import Limits, held
from ..errors import BundleError, EdgediffError, EngineError, shown
from ..sampling.kernels import describe
from ..verify import reference
from .options import add_engine_cache
from .printing import say


def add(commands: Any) -> None:
    """Add the command's own options."""
    p = commands.add_parser("info", help="a bundle's parts, and what would run here")
    p.add_argument("model", nargs="?", metavar="BUNDLE", help="default: the built-in emoji model")
    p.add_argument("--device", default="cuda", metavar="D", help="which GPU to ask about (default: cuda)")
    add_engine_cache(p)
    p.set_defaults(run=info)


def info(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.model)
    defaults = bundle.defaults
    say(f"{bundle.name}  {bundle.id}  {bundle.kind}  ({bundle.root})")
    print_foreign(bundle)
    if bundle.licence:
        say(f"licence    {bundle.licence}")
    say(
        f"defaults   {defaults.width}x{defaults.height}, {defaults.num_inference_steps} steps of {defaults.sampler}, "
        f"guidance {defaults.guidance_scale:g}"
    )
    schedule, latent = bundle.schedule, bundle.latent
    spacing = f"{schedule.sigma_spacing} in " * bool(schedule.sigma_spacing) + schedule.timestep_spacing
    say(f"schedule   {schedule.beta_schedule}, {schedule.prediction_type}, {spacing}")
    say(
        f"latent     {latent.channels} channels, {latent.factor}x smaller, scale {latent.scale:g}; sizes are multiples "
        f"of {latent.size_multiple}"
    )
    options = EngineOptions(engine_cache=Path(args.engine_cache) if args.engine_cache else None)
    total = problems = 0
    for name, file in bundle.files():
        total += file.size
        state = _state(bundle, name, file, options)
        problems += state.startswith("PROBLEM")
        say(f"{name:<16}{file.path:<23} {file.precision:<14}{file.size / 1e6:>9.2f} MB  {state}")
    say(f"{'total':<54}{total / 1e6:>9.2f} MB")
    ordinal = check_device(args.device) or 0
    say(f"updates    {describe()}; on a GPU: {describe_code(ordinal)}")
    print_isolation(bundle)
    print_survey(bundle, options, ordinal)
    for name, part in bundle.parts.items():
        for arrow, tensors in (("<-", part.inputs), ("->", part.outputs)):
            for t in tensors:
                declared = as_declared(bundle, name, t)
                say(f"{name:<16}{arrow} {t.name} {t.dtype}[{', '.join(map(str, t.shape))}]{declared}")
    for name in bundle.parts:
        facts = bundle.parity.get(name)
        if facts and "relative" in facts:
            kept = len(facts.get("kept_fp32", ()))
            say(
                f"{name:<16}{facts['relative']:.1e} from {reference(bundle)} (relative)"
                + f", {kept} nodes in fp32" * bool(kept)
            )
    if problems:
        raise BundleError(f"{problems} of {len(bundle.files())} files of bundle {shown(bundle.name)} cannot be used")


def print_foreign(bundle: Bundle) -> None:
    """Print what is known of another exporter's folder, and what is not."""
    if bundle.foreign is None:
        return
    producer = bundle.provenance["producer"] or "an exporter that does not say"
    say(f"foreign    {bundle.provenance['source_class']}, graphs by {producer}: no checksums, no golden tensors")
    for note in bundle.foreign.notes:
        say(f"           {note}")
    for name, adaptation in bundle.foreign.parts.items():
        header = adaptation.header
        opsets = [f"{domain or 'ai.onnx'} {version}" for domain, version in header.opsets.items()]
        operators = [f"{domain}.{operator}" for domain, operator in header.custom]
        say(f"{name:<16}opset {', '.join(opsets)}{'; beside them ' * bool(operators)}{', '.join(operators)}")


def as_declared(bundle: Bundle, part: str, tensor: Tensor) -> str:
    """What another exporter's graph calls a tensor of a part, where that differs."""
    if bundle.foreign is None:
        return ""
    adaptation = bundle.foreign.parts[part]
    given = adaptation.outputs.get(tensor.name)
    port = adaptation.inputs[tensor.name] if given is None or tensor in bundle.parts[part].inputs else given.port
    half = "" if given is None or given.half is None else f", half {given.half + 1} of it"
    return f"  by {port}{half}"


def print_isolation(bundle: Bundle) -> None:
    """Print what ``load(isolated=True)`` would hold back here."""
    try:
        facts = held(Limits(), memory_of(bundle, Limits()))
    except EngineError as error:
        say(f"isolated   no: {error}")
        return
    say(f"isolated   {facts.memory / 1e9:.1f} GB, {facts.seconds:g} s a call; kept from {'; '.join(facts.holds)}")
    for what in facts.lacks:
        say(f"           not kept from {what}")


def print_survey(bundle: Bundle, options: EngineOptions, ordinal: int) -> None:
    """Print what would run each part on either device; parts with the same answer share it."""
    answers: dict[tuple[str, ...], list[str]] = {}
    for name in bundle.parts:
        lines: list[str] = []
        for row in survey(bundle, name, options, ordinal):
            lines.append(f"{row.device:<6}{row.engine:<14}{'no' if row.reasons else 'yes  ' + row.detail}")
            lines += [f"{'':<22}{reason}" for reason in row.reasons]
        answers.setdefault(tuple(lines), []).append(name)
    for text, names in answers.items():
        say("engines    of " + ("every part" if len(answers) == 1 else ", ".join(names)))
        for line in text:
            say(f"           {line}")


def _state(bundle: Bundle, name: str, file: File, options: EngineOptions) -> str:
    hashed = file.size <= HASH_LIMIT
    try:
        bundle.path(name, file, hashed=hashed)
    except EdgediffError as error:
        return f"PROBLEM: {error}"
    state = f"ok  {file.sha256[:10]}" if hashed else "size ok, not hashed (edgediff verify does)"
    state = state if bundle.foreign is None else "is there"
    if name not in bundle.parts:  # a tokenizer, an embedding or the golden tensors, whatever their entry says
        return state
    return f"{state}  {_by_cpu(bundle, name, file, options)}"


def _by_cpu(bundle: Bundle, part: str, file: File, options: EngineOptions) -> str:
    """Return the backends that run a part's file on the CPU, or why there are none."""
    backends = [backend for backend in walk(options, None) if file.engine in backend.runs]
    reasons = {backend.name: backend.why_not(bundle, part, options, None) for backend in backends}
    if names := [name for name, why in reasons.items() if not why]:
        return f"runs on cpu by {', '.join(names)}"
    passed_over = [reason for why in reasons.values() for reason in why] or [why_not_file(file, ())]
    return f"passed over: {'; '.join(dict.fromkeys(passed_over))}"
