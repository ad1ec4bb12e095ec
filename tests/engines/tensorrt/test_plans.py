"""Plans: profiles, the cache, builds in a real child process, and pictures through them. TensorRT is stood in for."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.bundle.manifest import PLAIN
from edgediff.bundle.reading import read_bundle
from edgediff.device import driver
from edgediff.device.host import HostDevice
from edgediff.engines.choose import EngineOptions
from edgediff.engines.tensorrt import installed as preflight
from edgediff.engines.tensorrt.build import BuildOptions, build_part
from edgediff.engines.tensorrt.cache import BuiltEngine, EngineCache, Platform, default_folder, source
from edgediff.engines.tensorrt.child import BuildCancelled, environment
from edgediff.engines.tensorrt.profiles import Ranges, profile, why_not_shapes
from edgediff.errors import ArgumentError, BundleError, EngineError
from edgediff.pipeline import Pipeline
from edgediff.verify import prove

from .conftest import GPU

PROMPT = "a cat"


def build(bundle: Path, part: str, cache: EngineCache, recipe: BuildOptions | None = None, **more: Any) -> BuiltEngine:
    return build_part(
        read_bundle(bundle), part, recipe or BuildOptions(), preflight.building_platform(0), cache, **more
    )


def opened(bundle: Path, cache: EngineCache, engine: str | None = None) -> tuple[Pipeline, HostDevice]:
    device = HostDevice()
    return Pipeline(read_bundle(bundle), EngineOptions(engine=engine, cache=cache), device), device


def files(cache: EngineCache) -> list[str]:
    return sorted(p.relative_to(cache.folder).as_posix() for p in cache.folder.rglob("*") if p.is_file())


class TestProfiles:
    def test_from_symbolic_shapes(self, half_bundle: Path) -> None:
        bundle = read_bundle(half_bundle)
        assert profile(bundle, "unet", Ranges()) == {
            "sample": ((1, 4, 4, 4), (2, 4, 8, 8), (2, 4, 12, 12)),
            "timestep": ((1,), (2,), (2,)),
            "encoder_hidden_states": ((1, 77, 32), (2, 77, 32), (2, 231, 32)),
        }
        wide = Ranges(images=4, least=(16, 32), best=(64, 32), most=(64, 64))
        assert profile(bundle, "vae_decoder", wide) == {"latent_sample": ((1, 4, 8, 4), (4, 4, 8, 16), (4, 4, 16, 16))}
        assert profile(bundle, "text_encoder", wide)["input_ids"] == ((1, 77), (2, 77), (24, 77))

    def test_every_family(self, family_bundle: Any) -> None:
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
            ({"least": (30, 32)}, "size 30x32: both must be multiples of 8"),
            ({"least": (64, 64), "best": (32, 32)}, "sizes 64x64, 32x32, 48x48: the least must not be above"),
            ({"most": (8, 8)}, "the least must not be above"),
        ],
    )
    def test_bad_sizes(self, half_bundle: Path, ranges: Any, message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            profile(read_bundle(half_bundle), "unet", Ranges(**ranges))

    def test_bad_numbers(self) -> None:
        with pytest.raises(ArgumentError, match=r"images is 0; it must be 1 \.\. 64"):
            Ranges(images=0)
        with pytest.raises(ArgumentError, match="no hardware compatibility 'all'; choose from none, ampere_plus"):
            BuildOptions(hardware="all")
        with pytest.raises(ArgumentError, match=r"level is 9; it must be 0 \.\. 5"):
            BuildOptions(level=9)
        with pytest.raises(ArgumentError, match="workspace is -1; it must be a number of bytes"):
            BuildOptions(workspace=-1)

    def test_shapes_outside(self, half_bundle: Path) -> None:
        made = profile(read_bundle(half_bundle), "vae_decoder", Ranges())
        assert why_not_shapes(made, {"latent_sample": (1, 4, 8, 8)}) == ""
        for shape in ((2, 4, 8, 8), (1, 4, 13, 8), (1, 4, 8)):
            assert f"latent_sample is {list(shape)}" in why_not_shapes(made, {"latent_sample": shape})


class TestSources:
    def test_the_graph_without_fused_attention(self, half_bundle: Path) -> None:
        bundle = read_bundle(half_bundle)
        plain = next(f for f in bundle.parts["unet"].files if f.engine == PLAIN)
        made_of = source(bundle, "unet")
        assert (made_of.path.name, made_of.graph) == (plain.path, plain.sha256)
        assert source(bundle, "text_encoder").path.name == "text_encoder.onnx"

    def test_other_precisions_are_named(self, tiny_bundle: Path) -> None:
        with pytest.raises(EngineError, match="unet: TensorRT builds from graphs exported with --precision fp16"):
            source(read_bundle(tiny_bundle), "unet")  # fp32, and fused
        with pytest.raises(EngineError, match="bundle 'edgediff-emoji-core64' has fp16-weights"):
            source(edgediff.load().bundle, "unet")

    def test_a_damaged_graph(self, half_bundle: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(half_bundle, tmp_path / "copy"))
        graph = source(read_bundle(root), "unet").path
        graph.write_bytes(graph.read_bytes()[:-1] + b"?")
        with pytest.raises(BundleError, match="is damaged"):
            source(read_bundle(root), "unet")


class TestCache:
    def described(self, **other: Any) -> BuiltEngine:
        facts: dict[str, Any] = {
            "part": "unet",
            "graph": "ab" * 32,
            "weights": ("cd" * 32,),
            "gpu": "Orin",
            "capability": (8, 7),
            "tensorrt": (10, 3, 0, 30),
            "machine": "linux-aarch64",
            "profile": {"sample": ((1, 4), (2, 4), (2, 8))},
        }
        return BuiltEngine(**(facts | other))

    here = Platform("Orin", (8, 7), (10, 3, 0, 30), "linux-aarch64")

    @pytest.mark.parametrize(
        "other",
        [
            {"part": "vae_decoder"},
            {"graph": "00" * 32},
            {"weights": ()},
            {"gpu": "Thor"},
            {"capability": (11, 0)},
            {"tensorrt": (10, 3, 0, 31)},
            {"machine": "linux-x86_64"},
            {"profile": {"sample": ((1, 4), (2, 4), (2, 9))}},
            {"level": 5},
            {"hardware": "ampere_plus"},
            {"version_compatible": True},
            {"stripped": True},
        ],
        ids=str,
    )
    def test_keys(self, other: dict[str, Any]) -> None:
        assert self.described(**other).key != self.described().key
        assert self.described(seconds=3.0, size=9, sha256="ee").key == self.described().key

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            ({}, ""),
            ({"gpu": "Orin Nano"}, "was built for Orin Nano, this is Orin"),
            ({"capability": (11, 0)}, "was built for compute capability 11.0, this GPU has 8.7"),
            ({"machine": "linux-x86_64"}, "was built on linux-x86_64, this is linux-aarch64"),
            ({"tensorrt": (10, 13, 3, 9)}, "was built by TensorRT 10.13.3.9, this is 10.3.0.30"),
            ({"tensorrt": (10, 0, 1, 6), "version_compatible": True}, ""),
            (
                {"tensorrt": (11, 4, 0, 106), "version_compatible": True},
                "TensorRT 11.4.0.106, which is newer",
            ),
            ({"gpu": "A10", "capability": (8, 6), "hardware": "ampere_plus"}, ""),
            ({"gpu": "Orin Nano", "hardware": "same_compute_capability"}, ""),
            ({"capability": (8, 6), "hardware": "same_compute_capability"}, "was built for compute capability 8.6"),
        ],
        ids=str,
    )
    def test_what_may_run_here(self, other: dict[str, Any], reason: str) -> None:
        found = self.described(**other).why_not(self.here)
        assert found.find(reason) >= 0 if reason else not found

    def test_turing_does_not_run_ampere_plus(self) -> None:
        plan = self.described(hardware="ampere_plus")
        assert "8.0 or above" in plan.why_not(replace(self.here, capability=(7, 5)))

    def put(self, cache: EngineCache, **other: Any) -> BuiltEngine:
        with cache.scratch(1) as folder:
            (folder / "plan").write_bytes(b"a plan" * 100)
            return cache.publish(folder / "plan", self.described(**other))

    def find(self, cache: EngineCache, plan: BuiltEngine) -> tuple[list[BuiltEngine], list[str]]:
        from edgediff.engines.tensorrt.cache import EngineSource

        return cache.find(EngineSource(Path(), plan.graph, plan.weights, 0), plan.part, self.here)

    def test_what_goes_in_comes_out(self, cache: EngineCache) -> None:
        plan = self.put(cache, level=2, seconds=4.5)
        assert plan.path is not None
        assert (plan.size, plan.path.read_bytes()) == (600, b"a plan" * 100)
        assert self.find(cache, plan) == ([plan], [])
        assert files(cache) == [f"plans/{'ab' * 8}/unet-{plan.key[:16]}.{e}" for e in ("json", "plan")]
        assert self.find(cache, replace(plan, weights=("ee",)))[0] == []

    def test_newest_first(self, cache: EngineCache) -> None:
        first, second = self.put(cache), self.put(cache, level=5)
        for plan, age in ((first, 10), (second, 100)):
            assert plan.path is not None
            os.utime(plan.path.with_suffix(".json"), (time.time() - age,) * 2)
        assert self.find(cache, first)[0] == [first, second]

    @pytest.mark.parametrize("how", ["truncated", "changed", "missing", "description", "half a description", "format"])
    def test_broken_plans_are_passed_over(self, cache: EngineCache, how: str) -> None:
        plan = self.put(cache)
        assert plan.path is not None
        description = plan.path.with_suffix(".json")
        if how == "truncated":
            plan.path.write_bytes(plan.path.read_bytes()[:-1])
        elif how == "changed":
            plan.path.write_bytes(b"A" + plan.path.read_bytes()[1:])
        elif how == "missing":
            plan.path.unlink()
        elif how == "description":
            description.unlink()
        elif how == "half a description":
            description.write_text(description.read_text()[:50])
        else:
            description.write_text(json.dumps(json.loads(description.read_text()) | {"format": 99}))
        good, reasons = self.find(cache, plan)
        assert good == []
        assert len(reasons) == (how != "description")

    def test_drop(self, cache: EngineCache) -> None:
        plan = self.put(cache)
        cache.drop(plan)
        assert files(cache) == []

    def test_no_room(self, cache: EngineCache) -> None:
        with pytest.raises(EngineError, match="GB free; a plan needs about 1000000000"), cache.scratch(10**18):
            pass

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(EngineError, match=r"the cache of plans at .* cannot be written"):  # noqa: SIM117
            with EngineCache(tmp_path / "file").scratch(1):
                pass

    def test_what_a_killed_build_left_is_cleared_away(self, cache: EngineCache) -> None:
        old, new = cache.folder / ".building-old", cache.folder / ".building-new"
        for folder in (old, new):
            folder.mkdir(parents=True)
        os.utime(old, (1, 1))
        with cache.scratch(1):
            assert not old.exists()
            assert new.exists()

    def test_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path))
        assert default_folder() == tmp_path
        monkeypatch.delenv("EDGEDIFF_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        if sys.platform == "linux":
            assert default_folder() == tmp_path / "edgediff"


class TestBuilds:
    def test_progress_and_the_plan(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.12")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
        told: list[tuple[str, float, str]] = []
        recipe = BuildOptions(workspace=1 << 28, level=4, hardware="ampere_plus", version_compatible=True)
        plan = build(half_bundle, "unet", cache, recipe, ordinal=1, progress=lambda *event: told.append(event))
        assert told == [
            *(("unet", round((k + 1) / 8, 4), "Tactics") for k in range(4)),
            ("unet", 1.0, ""),
        ]
        assert plan.path is not None
        facts = json.loads(plan.path.read_bytes()[len(standin.MAGIC) :])
        made_of = source(read_bundle(half_bundle), "unet")
        assert facts == {
            "graph": str(made_of.path),
            "profile": {name: [list(s) for s in three] for name, three in plan.profile.items()},
            "flags": ["VERSION_COMPATIBLE"],
            "limits": {"WORKSPACE": 1 << 28},
            "level": 4,
            "hardware": "AMPERE_PLUS",
            "gpu": "3",
        }
        assert plan.tensorrt == (10, 13, 3, 9)
        assert plan.seconds > 0
        assert (plan.gpu, plan.capability, plan.hardware) == (GPU.name, GPU.capability, "ampere_plus")
        assert cache.find(made_of, "unet", preflight.this_platform(0)) == ([plan], [])
        assert not list(cache.folder.glob(".building-*"))

    def test_timings_are_kept(self, standin: Any, half_bundle: Path, cache: EngineCache) -> None:
        timing = cache.timing(preflight.building_platform(0))
        for known in (b".", b".."):
            build(half_bundle, "vae_decoder", cache)
            assert timing.read_bytes() == known
        timing.write_bytes(b"of another TensorRT")
        build(half_bundle, "vae_decoder", cache)
        assert timing.read_bytes() == b"."

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("crash", r"unet: the build was killed by SIGSEGV"),
            ("exit", r"unet: the build ended with code 5: .*the library; gives up"),
            ("none", r"unet: TensorRT 10\.13\.3\.9 made no plan: no kernel for node 7"),
            ("raise", r"unet: RuntimeError: out of luck"),
            (
                "unreadable",
                r"unet: TensorRT 10\.13\.3\.9 cannot read unet\.plain\.onnx: conv_in: no such operator",
            ),
        ],
    )
    def test_failures_say_why_and_leave_nothing(
        self,
        standin: Any,
        half_bundle: Path,
        cache: EngineCache,
        monkeypatch: pytest.MonkeyPatch,
        how: str,
        message: str,
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN", how)
        with pytest.raises(EngineError, match=message):
            build(half_bundle, "unet", cache)
        assert files(cache) == []

    def test_cap_on_memory(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN", "memory")
        with pytest.raises(EngineError, match=r"took 0\.\d GB of memory, above its limit of 0\.4 GB"):
            build(half_bundle, "unet", cache, BuildOptions(memory_limit=4 * 10**8))
        assert files(cache) == []

    @pytest.mark.parametrize("how", ["hang", "deaf"])
    def test_cancel(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN", how)
        monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.15")
        monkeypatch.setattr("edgediff.engines.tensorrt.child.GRACE", 0.5)
        cancel, told = threading.Event(), []

        def progress(*event: Any) -> None:
            told.append(event)
            cancel.set()

        began = time.monotonic()
        with pytest.raises(BuildCancelled, match="unet: the build was cancelled"):
            build(half_bundle, "unet", cache, progress=progress, cancel=cancel)
        assert told
        assert time.monotonic() - began < 60
        assert files(cache) == []

    def test_a_child_ends_with_its_parent(self, standin: Any, half_bundle: Path, tmp_path: Path) -> None:
        import subprocess

        from edgediff.engines.tensorrt.build import COMMAND

        order = {"graph": str(source(read_bundle(half_bundle), "vae_decoder").path), "plan": str(tmp_path / "plan")}
        order |= {"profile": profile(read_bundle(half_bundle), "vae_decoder", Ranges())}  # type: ignore[dict-item]
        env = environment(0) | {"EDGEDIFF_STANDIN": "hang"}
        child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert child.stdin is not None
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.close()  # as when the parent dies
        assert child.wait(60) == 3

    def test_another_tensorrt_in_the_child(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN_VERSION", "11.4.0.106")
        with pytest.raises(
            EngineError, match=r"unet: the build found TensorRT 11\.4\.0\.106, this process has 10\.13\.3\.9"
        ):
            build(half_bundle, "unet", cache)
        assert not [name for name in files(cache) if name.startswith("plans/")]

    def test_a_command_that_is_not_there(self, standin: Any, half_bundle: Path, cache: EngineCache) -> None:
        with pytest.raises(EngineError, match="unet: the build cannot start /no/such/python"):
            build(half_bundle, "unet", cache, command=["/no/such/python"])

    def test_a_command_that_knows_nothing(self, standin: Any, half_bundle: Path, cache: EngineCache) -> None:
        with pytest.raises(EngineError, match="unet: the build ended without a plan"):
            build(half_bundle, "unet", cache, command=[sys.executable, "-c", "print('[1]')"])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans by the default recipe, once they are built."""
    return tmp_path_factory.mktemp("plans") / "kept"


class TestPictures:
    @pytest.fixture
    def plans(self, standin: Any, half_bundle: Path, cache: EngineCache, kept: Path) -> EngineCache:
        """The cache, with plans of every part that a call needs."""
        if not kept.exists():
            self.build_all(half_bundle, EngineCache(kept))
        shutil.copytree(kept, cache.folder)
        return cache

    def build_all(self, bundle: Path, cache: EngineCache, recipe: BuildOptions | None = None) -> None:
        for part in read_bundle(bundle).needed:
            build(bundle, part, cache, recipe)

    def reference(self, bundle: Path) -> Pipeline:
        """The graphs that plans are built from, by ONNX Runtime and the host loop."""
        from edgediff.engines.onnxruntime import OnnxRuntimeEngine

        pipe = edgediff.load(bundle)
        for part in pipe.bundle.needed:
            made_of = source(pipe.bundle, part)
            pipe.set_engine(part, OnnxRuntimeEngine(part, made_of.path, pipe.bundle.parts[part]))
        return pipe

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"sampler": "euler_a", "rng": "torch-cpu"},
            {"guidance_interval": (0.2, 0.7)},
            {"guidance_scale": 1.0},
            {"height": 40, "width": 24},
            {"prompt": " ".join(["cat"] * 150)},
            {"guidance": "apg"},
        ],
        ids=str,
    )
    def test_the_graphs_own(
        self, standin: Any, half_bundle: Path, plans: EngineCache, arguments: dict[str, Any]
    ) -> None:
        call = {"prompt": PROMPT, "negative_prompt": "dog", "seed": 3, "num_inference_steps": 6} | arguments
        if len(call["prompt"]) > 100:
            call["negative_prompt"] = call["prompt"].replace("cat", "dog")
        pipe, device = opened(half_bundle, plans, "tensorrt")
        wanted = self.reference(half_bundle)(**call, output_type="np")
        for _ in range(2):
            made = pipe(**call, output_type="np")
            np.testing.assert_array_equal(made.latents, wanted.latents)
            np.testing.assert_array_equal(made.images, wanted.images)
        if "guidance" not in arguments:  # apg runs by the host loop
            assert device.calls["launch"] >= 6  # captured, with a part whose memory is shared

    def test_one_captured_graph_serves_every_request(self, standin: Any, half_bundle: Path, plans: EngineCache) -> None:
        pipe, device = opened(half_bundle, plans, "tensorrt")
        for seed in range(2):
            pipe(PROMPT, seed=seed, num_inference_steps=5)
        before, contexts = device.calls["capture"], standin.counts["contexts"]
        for seed in range(3):
            pipe(PROMPT, seed=seed, num_inference_steps=5)
        assert device.calls["capture"] == before  # the decoder's scratch memory has moved once, in the first request
        assert standin.counts["contexts"] == contexts

    def test_requests_side_by_side_have_contexts_of_their_own(
        self, standin: Any, half_bundle: Path, plans: EngineCache
    ) -> None:
        """A captured graph holds on to its context and its addresses."""
        pipe, _ = opened(half_bundle, plans, "tensorrt")
        streams = [pipe.stream(PROMPT, seed=seed, num_inference_steps=5) for seed in range(2)]
        last = [steps[-1] for steps in zip(*zip(*streams, strict=True), strict=True)]
        engine: Any = pipe.engine("unet")
        assert len(engine._contexts) == 2
        for context, _ in engine._contexts.values():
            assert context.moved == 0
        for seed, step in enumerate(last):
            wanted = self.reference(half_bundle)(PROMPT, seed=seed, num_inference_steps=5, output_type="latent").latents
            np.testing.assert_array_equal(step.latents, wanted)

    def test_contexts_of_many_shapes(
        self, standin: Any, half_bundle: Path, plans: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipe, _ = opened(half_bundle, plans, "tensorrt")
        pipe(PROMPT, seed=0, num_inference_steps=3)
        monkeypatch.setattr(sys.modules["edgediff.engines.tensorrt.engine"], "KEPT", 2)
        reference = self.reference(half_bundle)
        for size in (16, 24, 32, 40, 32, 16):
            call = {"seed": 1, "num_inference_steps": 4, "height": size, "width": 32, "output_type": "latent"}
            np.testing.assert_array_equal(pipe(PROMPT, **call).latents, reference(PROMPT, **call).latents)

    def test_threads(self, standin: Any, half_bundle: Path, plans: EngineCache) -> None:
        pipe, _ = opened(half_bundle, plans)
        call = {"num_inference_steps": 4, "output_type": "latent"}
        wanted = [self.reference(half_bundle)(PROMPT, seed=k, **call).latents for k in range(4)]
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda k=k: found.update({k: pipe(PROMPT, seed=k, **call).latents}))
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for k, latents in enumerate(wanted):
            np.testing.assert_array_equal(found[k], latents)

    def test_plans_without_weights(self, standin: Any, half_bundle: Path, cache: EngineCache) -> None:
        self.build_all(half_bundle, cache, BuildOptions(stripped=True))
        pipe, _ = opened(half_bundle, cache, "tensorrt")
        before = standin.counts["refits"]
        made = pipe(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
        wanted = self.reference(half_bundle)(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
        np.testing.assert_array_equal(made.latents, wanted.latents)
        assert standin.counts["refits"] - before == 2  # latents were asked for: no decoder

    def test_version_compatible_plans_may_bring_their_runtime(
        self, standin: Any, half_bundle: Path, cache: EngineCache
    ) -> None:
        self.build_all(half_bundle, cache, BuildOptions(version_compatible=True))
        pipe, _ = opened(half_bundle, cache, "tensorrt")
        assert pipe.engine("unet").capturable  # type: ignore[attr-defined]

    def test_shapes_outside_the_plan_go_to_onnx_runtime(
        self, standin: Any, half_bundle: Path, plans: EngineCache
    ) -> None:
        pipe, _ = opened(half_bundle, plans)
        call: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "output_type": "latent", "height": 64}
        runs = standin.counts["runs"]
        made = pipe(PROMPT, **call)
        assert standin.counts["runs"] == runs + 2  # the text encoder's
        np.testing.assert_allclose(made.latents, edgediff.load(half_bundle)(PROMPT, **call).latents, atol=1e-2)
        strict, _ = opened(half_bundle, plans, "tensorrt")
        with pytest.raises(EngineError, match=r"unet cannot run by TensorRT: sample is \[2, 4, 16, 8\], and the plan"):
            strict(PROMPT, **call)

    def test_plans_are_proved_by_what_torch_gave(self, standin: Any, half_bundle: Path, plans: EngineCache) -> None:
        pipe, _ = opened(half_bundle, plans, "tensorrt")
        runs = standin.counts["runs"]
        found = {finding.what: finding for finding in prove(pipe)}
        assert all(finding.ok for finding in found.values() if finding.what != "vae_encoder")  # which has no plan
        assert standin.counts["runs"] > runs
        narrow = EngineCache(plans.folder / "narrow")
        build(half_bundle, "vae_decoder", narrow, BuildOptions(Ranges(1, (8, 8), (8, 8), (8, 8))))
        pipe, _ = opened(half_bundle, narrow)
        found = {finding.what: finding for finding in prove(pipe)}
        assert found["vae_decoder"].detail.startswith("not proved: no golden input fits the plan: latent_sample is [")

    def test_no_plan(self, standin: Any, half_bundle: Path, tiny_bundle: Path, cache: EngineCache) -> None:
        pipe, _ = opened(half_bundle, cache, "tensorrt")
        with pytest.raises(EngineError, match="text_encoder cannot run by TensorRT: no plan was built; run: edgediff"):
            pipe(PROMPT)
        pipe, _ = opened(tiny_bundle, cache, "tensorrt")
        with pytest.raises(EngineError, match="unet cannot run by TensorRT: TensorRT builds from graphs"):
            pipe.engine("unet")

    def test_a_plan_that_does_not_open_is_passed_over(
        self, standin: Any, half_bundle: Path, cache: EngineCache
    ) -> None:
        plan = build(half_bundle, "unet", cache)
        assert plan.path is not None
        other = plan.path.read_bytes().replace(b"standin", b"another")
        plan.path.write_bytes(other)
        text = plan.path.with_suffix(".json")
        text.write_text(
            json.dumps(json.loads(text.read_text()) | {"sha256": __import__("hashlib").sha256(other).hexdigest()})
        )
        pipe, _ = opened(half_bundle, cache, "tensorrt")
        with pytest.raises(EngineError, match=r"TensorRT 10\.13\.3\.9 cannot open the plan .*magic tag does not match"):
            pipe.engine("unet")
        pipe, _ = opened(half_bundle, cache)
        assert type(pipe.engine("unet")).__name__ == "OnnxRuntimeStreamEngine"

    def test_a_large_damaged_plan_leaves_the_cache(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = build(half_bundle, "unet", cache)
        assert plan.path is not None
        plan.path.write_bytes(plan.path.read_bytes().replace(b"standin", b"another"))
        monkeypatch.setattr("edgediff.engines.tensorrt.cache.HASH_LIMIT", 0)  # as if it were large
        pipe, _ = opened(half_bundle, cache, "tensorrt")
        with pytest.raises(EngineError, match=r"is damaged \(another sha256 than when it was built"):
            pipe.engine("unet")
        assert not [name for name in files(cache) if name.startswith("plans/")]


class TestAuto:
    def test_serves_at_once_and_swaps_between_calls(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.5")
        pipe, _ = opened(half_bundle, cache, "auto")
        work = pipe.build_plans(BuildOptions())
        assert work is not None
        assert work.parts == ("unet", "text_encoder", "vae_decoder")
        call: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "output_type": "latent"}
        running = pipe.stream(PROMPT, **call)
        next(running)
        before = edgediff.load(half_bundle)(PROMPT, **call).latents
        assert work.wait(60)
        assert work.errors == {}
        assert work.share == 1.0
        last = list(running)[-1]
        np.testing.assert_allclose(last.latents, before, atol=1e-5)  # went on as it had begun
        assert type(pipe.engine("unet")).__name__ == "TensorRTEngine"
        after = TestPictures().reference(half_bundle)(PROMPT, **call).latents
        np.testing.assert_array_equal(pipe(PROMPT, **call).latents, after)
        assert pipe.build_plans(BuildOptions()) is work  # nothing is missing
        again, _ = opened(half_bundle, cache, "auto")
        assert again.build_plans(BuildOptions()) is None

    def test_a_failed_build_leaves_onnx_runtime(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN", "crash")
        pipe, _ = opened(half_bundle, cache, "auto")
        work = pipe.build_plans(BuildOptions())
        assert work is not None
        assert work.wait(60)
        assert "killed by SIGSEGV" in str(work.errors["unet"])
        assert pipe(PROMPT, seed=0, num_inference_steps=2).images
        assert files(cache) == []

    def test_without_tensorrt_onnx_runtime_serves(
        self, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preflight, "probe", lambda ordinal: GPU)
        preflight.module.cache_clear()
        pipe, _ = opened(half_bundle, cache, "auto")
        work = pipe.build_plans()
        assert work is not None
        assert work.wait(60)
        assert {str(error).split(";")[0] for error in work.errors.values()} == {"TensorRT is not installed"}
        assert pipe(PROMPT, seed=0, num_inference_steps=2).images

    def test_cancel_ends_all(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEDIFF_STANDIN", "hang")
        pipe, _ = opened(half_bundle, cache, "auto")
        work = pipe.build_plans(BuildOptions())
        assert work is not None
        work.cancel()
        assert work.wait(60)
        assert list(work.errors) == ["unet"]

    def test_where_onnx_runtime_cannot_serve_the_plan_is_waited_for(
        self, standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none(*_: Any, **__: Any) -> Any:
            raise EngineError("ONNX Runtime has no CUDAExecutionProvider")

        monkeypatch.setattr("edgediff.engines.choose.open_part", none)
        pipe, _ = opened(half_bundle, cache, "auto")
        pipe.build_plans(BuildOptions())
        made = pipe(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
        wanted = TestPictures().reference(half_bundle)(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
        np.testing.assert_array_equal(made.latents, wanted.latents)

    def test_nothing_to_build_from(self, standin: Any, tiny_bundle: Path, cache: EngineCache) -> None:
        pipe, _ = opened(tiny_bundle, cache, "auto")
        work = pipe.build_plans(BuildOptions())
        assert work is not None
        assert work.wait(60)
        assert "exported with --precision fp16" in str(work.errors["unet"])
        assert pipe(PROMPT, seed=0, num_inference_steps=2).images

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"engine": "trt"}, "no engine 'trt'; choose from onnx, tensorrt, auto"),
            ({"engine": "auto"}, "engine 'auto' needs device='cuda'; the CPU's is 'onnx'"),
            ({"engine": "tensorrt", "device": "cuda", "providers": ["CUDAExecutionProvider"]}, "providers are ONNX"),
            ({"plans": 3}, "plans is 3; it must be the path of a folder"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            edgediff.load(**arguments)


class TestPreflight:
    def test_too_old(self, standin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(standin, "__version__", "8.6.1")
        with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 is too old; edgediff needs 10\.3 or newer"):
            preflight.this_platform(0)

    def test_cannot_be_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        preflight.module.cache_clear()
        with pytest.raises(EngineError, match="tensorrt is installed and cannot be loaded: OSError: libnvinfer"):
            preflight.version()
        preflight.module.cache_clear()

    @pytest.mark.skipif(not driver.why_no_gpu(), reason="there is a driver here")
    def test_no_driver_is_said_before_tensorrt_is_touched(self, half_bundle: Path, cache: EngineCache) -> None:
        with pytest.raises(EngineError, match="no NVIDIA driver"):
            preflight.this_platform(0)
        assert "tensorrt" not in sys.modules
        pipe, _ = opened(half_bundle, cache, "tensorrt")
        with pytest.raises(EngineError, match="unet cannot run by TensorRT: no NVIDIA driver"):
            pipe.engine("unet")
