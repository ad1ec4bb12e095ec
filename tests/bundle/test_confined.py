"""A bundle reads inside its folder alone, wherever links lead, and regular files alone: nothing waits or never ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edgediff
from edgediff import BundleError, EdgediffError, EngineError
from edgediff.bundle.golden import read_golden
from edgediff.bundle.manifest import _digest, sha256
from edgediff.bundle.reading import read_bundle
from edgediff.cli.main import main
from edgediff.confined import confined, stays

from ..support.manifest import edit

Folder = Callable[[], Path]
FILES = ("unet.onnx", "text_encoder.onnx", "tokenizer.json", "golden.safetensors")


def link(path: Path, target: Path | str, folder: bool = False) -> None:
    try:
        path.symlink_to(target, target_is_directory=folder)
    except OSError as error:  # Windows gives links to few
        pytest.skip(f"no links here: {error}")


def move_out(root: Path, name: str) -> Path:
    """Put a file of a bundle outside it, with a link to it in its place."""
    outside = root.parent / f"outside-{name}"
    (root / name).rename(outside)
    link(root / name, outside)
    return outside


def use(root: Path, name: str) -> None:
    """Read the file ``name`` of a bundle as the runtime does."""
    bundle = read_bundle(root)
    pipe = edgediff.load(root)
    if name == "tokenizer.json":
        pipe._open_tokenizers()
    elif name == "golden.safetensors":
        assert bundle.golden is not None
        read_golden(bundle, bundle.golden)
    else:
        pipe.engine(name.removesuffix(".onnx"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_outside_is_refused(damaged: Folder, name: str) -> None:
    root = damaged()
    use(root, name)
    move_out(root, name)
    with pytest.raises(BundleError, match="is a link out of"):
        use(root, name)


def test_a_manifest_outside_is_refused(damaged: Folder) -> None:
    root = damaged()
    move_out(root, "bundle.json")
    with pytest.raises(BundleError, match=r"bundle\.json.* is a link out of"):
        read_bundle(root)


def test_a_folder_in_the_middle_that_leads_out_is_refused(damaged: Folder) -> None:
    root = damaged()
    (root.parent / "elsewhere").mkdir()
    (root / "unet.onnx").rename(root.parent / "elsewhere" / "unet.onnx")
    link(root / "sub", root.parent / "elsewhere", folder=True)
    edit(root, lambda data: data["parts"]["unet"]["files"][0].update(path="sub/unet.onnx"))
    with pytest.raises(BundleError, match="is a link out of"):
        use(root, "unet.onnx")


def test_a_textual_inversion_outside_is_refused(damaged: Folder, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    root, outside = damaged(), tmp_path / "a.safetensors"
    save_file({"emb_params": np.ones((1, 32), np.float32)}, outside)
    file = {"engine": "embedding", "precision": "-", "path": "a.safetensors"}
    file |= {"size": outside.stat().st_size, "sha256": sha256(outside)}
    edit(root, lambda data: data.update(embeddings=[{"word": "dotty", "file": file}]))
    link(root / "a.safetensors", outside)
    with pytest.raises(BundleError, match=r"embedding: .* is a link out of"):
        edgediff.load(root)._textual_inversions()


def test_links_inside_and_a_root_that_is_a_link(damaged: Folder, tmp_path: Path) -> None:
    root = damaged()
    (root / "real").mkdir()
    (root / "unet.onnx").rename(root / "real" / "graph")
    link(root / "unet.onnx", "real/graph")
    use(root, "unet.onnx")
    link(tmp_path / "named", root, folder=True)
    use(tmp_path / "named", "unet.onnx")
    assert main(["info", str(tmp_path / "named")]) == 0


def test_a_hubs_cache_keeps_its_files_in_blobs(damaged: Folder, tmp_path: Path) -> None:
    revision = tmp_path / "models--me--tiny" / "snapshots" / "0123abc"
    blobs = revision.parents[1] / "blobs"
    shutil.copytree(damaged(), revision)
    blobs.mkdir()
    for k, path in enumerate(sorted(revision.iterdir())):
        path.rename(blobs / f"{k}")
        link(path, f"../../blobs/{k}")
    for name in FILES:
        use(revision, name)
    assert main(["verify", "--files", str(revision)]) == 0
    # Nowhere else, and for nobody else.
    (blobs / "unet.onnx").symlink_to("/etc/hostname")
    assert not stays(revision, blobs / "unet.onnx")
    (revision.parents[1] / "refs").mkdir()
    assert not stays(revision, revision.parents[1] / "refs" / "main")
    other = tmp_path / "models--me--tiny" / "other" / "0123abc"
    shutil.copytree(revision, other, symlinks=True)
    with pytest.raises(BundleError, match="is a link out of"):
        read_bundle(other)


def test_a_bundle_may_lie_inside_a_hubs_revision(damaged: Folder, tmp_path: Path) -> None:
    hub = tmp_path / "models--me--tiny"
    inside = hub / "snapshots" / "0123abc" / "onnx" / "fp16"
    (hub / "blobs").mkdir(parents=True)
    shutil.copytree(damaged(), inside)
    for k, path in enumerate(sorted(inside.iterdir())):
        path.rename(hub / "blobs" / f"{k}")
        link(path, f"../../../../blobs/{k}")
    for name in FILES:
        use(inside, name)
    assert not stays(inside, hub / "snapshots" / "0123abc" / "README.md")


def test_links_in_a_circle(damaged: Folder) -> None:
    root = damaged()
    (root / "unet.onnx").unlink()
    link(root / "unet.onnx", "unet.onnx")
    with pytest.raises(BundleError):
        use(root, "unet.onnx")
    (root / "bundle.json").unlink()
    link(root / "bundle.json", "bundle.json")
    with pytest.raises(BundleError):
        read_bundle(root)


def test_the_end_of_pythons_stack_is_no_fault_of_a_bundle(damaged: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> Path:
        raise RecursionError

    pipe = edgediff.load(damaged())
    monkeypatch.setattr(Path, "resolve", resolve)
    with pytest.raises(EngineError, match="Python's stack ended while"):
        pipe("a cat")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
@pytest.mark.parametrize("name", ["bundle.json", *FILES])
def test_a_pipe_is_no_file(damaged: Folder, name: str) -> None:
    """Opening one would wait for ever."""
    root = damaged()
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(BundleError, match=r"not in|no bundle"):
        use(root, name)


@pytest.mark.parametrize("special", ["/proc/kmsg", "/proc/self/pagemap", "/dev/zero"])
def test_files_without_an_end(damaged: Folder, special: str) -> None:
    """They have 0 bytes, say their sizes, and give bytes for ever, or none and wait."""
    if not os.path.exists(special):
        pytest.skip(f"no {special} here")
    root = damaged()
    (root / "unet.onnx").unlink()
    link(root / "unet.onnx", special)
    edit(root, lambda data: data["parts"]["unet"]["files"][0].update(size=0))
    assert main(["info", str(root)]) == 2
    (root / "bundle.json").unlink()
    link(root / "bundle.json", special)
    assert main(["info", str(root)]) == 2


def test_hashing_stops_where_the_file_should_end() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            size = len(memoryview(buffer))  # type: ignore[arg-type]
            self.given += size
            return size

    endless = Endless()
    _digest(endless, 3 << 20)  # type: ignore[arg-type]
    assert endless.given == (3 << 20) + 1


def test_a_long_manifest_is_not_read(damaged: Folder) -> None:
    root = damaged()
    with (root / "bundle.json").open("ab") as f:
        f.truncate(1 << 40)  # a sparse file of a terabyte
    with pytest.raises(BundleError, match="it holds more than 1048576 bytes"):
        read_bundle(root)


def test_a_path_that_no_system_has(tmp_path: Path) -> None:
    for path in ("a\0b", "a" * 5000, "\ud800"):
        with pytest.raises(EdgediffError):
            read_bundle(tmp_path / path)
    with pytest.raises(BundleError, match="cannot be followed"):
        confined(tmp_path, tmp_path / "a\0b")


def test_hints_read_nothing_outside(tmp_path: Path) -> None:
    """A folder without a bundle is named by what lies in it, not by what its links lead to."""
    secret = tmp_path / "secret.ckpt"
    secret.write_text("the password is 1234\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    link(folder / "model.ckpt", secret)
    link(folder / "config.json", secret)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert "password" not in str(caught.value)
    (folder / "model.ckpt").unlink()
    shutil.copy(secret, folder / "model.ckpt")
    with pytest.raises(BundleError, match="the password"):
        read_bundle(folder)


AUDIT = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and isinstance(args[0], str) else None)
from edgediff.cli.main import main
codes = [main([*command, sys.argv[1]]) for command in (["info"], ["verify"], ["generate", "x", "--model"])]
print(codes, [path for path in opened if os.path.realpath(path) == sys.argv[2]], file=sys.stderr)
"""


@pytest.mark.parametrize("name", ["bundle.json", *FILES])
def test_nothing_outside_is_opened(damaged: Folder, name: str, tmp_path: Path) -> None:
    root = damaged()
    outside = os.path.realpath(move_out(root, name))
    command = [sys.executable, "-c", AUDIT, str(root), outside]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    drawn = 0 if name == "golden.safetensors" else 2  # pictures do without
    assert run.stderr.splitlines()[-1] == f"[2, 2, {drawn}] []"
    assert "is a link out of" in run.stdout + run.stderr


def test_names_that_leave(damaged: Folder) -> None:
    root = damaged()
    kept = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    for name in ("../unet.onnx", "/unet.onnx", "C:/unet.onnx", "a\\b", "a/../../b", "", ".", "\u202eunet.onnx"):
        kept["parts"]["unet"]["files"][0]["path"] = name
        (root / "bundle.json").write_text(json.dumps(kept), encoding="utf-8")
        with pytest.raises(BundleError, match="leaves the bundle"):
            read_bundle(root)
