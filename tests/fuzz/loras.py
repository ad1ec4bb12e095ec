"""LoRA files of every layout, and textual inversions, damaged; merged into a model of toy width, or loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save

import edgediff
from edgediff_export.lora.file import read_lora
from edgediff_export.lora.merging import check, merged_weights
from edgediff_export.weight import Weight

from .bundles import DATA
from .children import Report, judged
from .kinds import dice
from .raw import battered, reheaded

Tensors = dict[str, torch.Tensor]


def toy_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def layouts(unet: torch.nn.Module) -> list[bytes]:
    """Files of kohya's and PEFT's form, with LoRA, LoHa, LoKr and DoRA, and two textual inversions."""
    kohya: Tensors = {}
    peft: Tensors = {}
    others: Tensors = {}
    named = [(n, m) for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    for k, (name, layer) in enumerate(named[:12]):
        out, into, *kernel = layer.weight.shape
        down, up = torch.randn(2, into, *kernel), torch.randn(out, 2, *[1] * len(kernel))
        stem = f"lora_unet_{name.replace('.', '_')}"
        kohya |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
        peft |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        if kernel:
            continue
        if k % 2:
            others |= {f"{stem}.hada_w{n}": torch.randn(*s) for n, s in
                       (("1_a", (out, 2)), ("1_b", (2, into)), ("2_a", (out, 2)), ("2_b", (2, into)))}  # fmt: skip
        else:
            others |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            others[f"{stem}.dora_scale"] = torch.ones(1, into)
        others[f"{stem}.alpha"] = torch.tensor(1.0)
    words = {"emb_params": torch.randn(2, 32)}
    return [
        save(kohya, {"ss_network_module": "networks.lora", "ss_base_model_version": "sd_v1-4"}),
        save(peft, {"format": "pt"}),
        save(others),
        save({name: tensor.half() for name, tensor in kohya.items()}),
        save({name: tensor.bfloat16() for name, tensor in peft.items()}),
        save(words),
        save({"<my-word>": torch.randn(1, 32)}),
    ]


class Loras:
    name = "loras"
    at_once = 5

    def prepare(self, work: Path) -> None:
        torch.set_num_threads(1)
        self.unet = toy_unet()
        self.files = layouts(self.unet)
        state = self.unet.state_dict()
        self.weights = {name: Weight.of(tensor.numpy()) for name, tensor in state.items()}

    def roots(self, work: Path) -> list[Path]:
        return [DATA]

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        pipe = edgediff.load(DATA / "tiny", threads=1)
        for number in numbers:
            random = dice(self.name, seed, number)
            kind = random.randrange(len(self.files))
            change = random.choice((reheaded, reheaded, battered))
            data, said = change(self.files[kind], random)
            path = folder / "file.safetensors"
            path.write_bytes(data)
            embedding = kind >= len(self.files) - 2
            use = self._embed if embedding else self._merge
            report(judged(f"layout {kind}: {said}", partial(use, path, pipe, random)))

    def _embed(self, path: Path, pipe: edgediff.Pipeline, random: Random) -> None:
        word = pipe.load_textual_inversion(path)
        pipe(f"a {word}", num_inference_steps=1, seed=1)
        pipe.unload_textual_inversion(word)

    def _merge(self, path: Path, pipe: edgediff.Pipeline, random: Random) -> None:
        loras = [read_lora(path, random.choice((1.0, 0.5)))]
        check(loras, {"unet": self.unet})
        for weight in merged_weights(loras, "unet", self.unet, self.weights).values():
            weight.read()


KIND = Loras()
