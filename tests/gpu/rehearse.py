"""The notebooks of the profile gpu on a handful of pictures: what would fail on the card fails here, in minutes.

    rehearse.py [--device cuda] [--backbone vit_b] [--dataset NAME ...] [NOTEBOOK ...]

A checkpoint of the backbone with random weights is made in SAM's own format and loaded as a file ("nano": the shipped
one); the diffusion model is a tiny one of random weights. Then one training step of ViT-L and ViT-H each. Everything is
written to results/rehearsal, which git ignores.
"""

import argparse
import sys
from pathlib import Path

import torch
import yaml

from samtune.commands.notebooks import run_notebook
from samtune.common.paths import resolve
from samtune.methods import build_method
from samtune.prompts import Prompts
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import save_official
from samtune.study.profile import Profile, load_profile

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_diffusion import save_tiny_diffusion  # noqa: E402

FOLDER = resolve("results/rehearsal")
GROUPS = {"31_asam_ablations": ["tokens", "rivals", "controlnet"]}  # more than in the profile smoke


def random_checkpoint(backbone: str) -> str:
    """A checkpoint of random weights in SAM's own format: its path; of "nano" its name."""
    path = FOLDER / f"random_{backbone}.pth"
    if backbone == "nano":
        return backbone
    if not path.is_file():
        torch.manual_seed(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_official(new_sam(backbone), path)
    return str(path)


def rehearsal_profile(backbone: str, device: str, datasets: list[str]) -> Path:
    """The profile gpu with 8 pictures a training, two a measurement, one seed, one learning rate and one data set a
    notebook, as a file; of the ablations those of the profile smoke: each kind of cell once is enough."""
    gpu: Profile = load_profile("gpu")
    values = gpu.model_dump(mode="json") | {
        "name": "rehearsal", "backbone": backbone, "device": device, "images": 8, "plateau_images": None,
        "seeds": [0], "ablation_seeds": [0], "batch_size": 2, "workers": 1, "learning_rates": [1e-3],
        "diffusion": str(save_tiny_diffusion(FOLDER / "diffusion")),
    }  # fmt: skip
    values["controlnet"] = values["diffusion"]  # its own
    general = datasets or values["pretraining"]["sets"][:1]
    values["pretraining"]["sets"] = general
    values["generation"] = load_profile("smoke").generation.model_dump(mode="json") | {"sets": general}
    small = load_profile("smoke").notebooks
    for name, notebook in values["notebooks"].items():
        first = values["datasets"][name] = datasets or values["datasets"][name][:1]
        given = notebook["parameters"] | small[name].parameters
        notebook["parameters"] = given | {key: first for key in ("controls", "transfer") if key in given}
        notebook["parameters"] |= {"speed": ["nano" if backbone == "nano" else "vit_b"]} if "speed" in given else {}
        notebook["parameters"] |= {"groups": GROUPS[name]} if name in GROUPS else {}
    values["evaluation"] |= {"max_images": 2, "batch_size": 2}
    path = FOLDER / "rehearsal.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def one_step(backbone: str, device: str) -> None:
    """One training step of SPT in bf16: does it fit, does it run?"""
    method = build_method("spt", new_sam(backbone)).to(device).train()
    images = torch.randn(1, 3, method.image_size, method.image_size, device=device)
    prompts = Prompts(torch.zeros(1, dtype=torch.int64), torch.tensor([[100.0, 100.0, 500.0, 500.0]])).to(device)
    masks = torch.ones(1, 1, 256, 256, device=device)
    with torch.autocast(device.partition(":")[0], torch.bfloat16):
        loss = method.loss(method(images, prompts), masks, torch.Generator(device).manual_seed(0))
    loss.backward()
    print(f"{backbone}: one step of SPT, loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--dataset", action="append", help="in place of the profile's; may be given again")
    parser.add_argument("notebooks", nargs="*")
    asked = parser.parse_args()
    profile = rehearsal_profile(random_checkpoint(asked.backbone), asked.device, asked.dataset or [])
    listed = load_profile(str(profile)).notebooks
    failures = []
    for name in asked.notebooks or listed:
        try:
            run_notebook(name, str(profile), listed[name].parameters)
        except Exception as error:  # one that fails must not hide what the others do
            print(f"FAILED {name}: {error}", flush=True)
            failures.append(name)
    for backbone in ("vit_l", "vit_h") if asked.device.startswith("cuda") else ():
        try:
            one_step(backbone, asked.device)
        except Exception as error:
            print(f"FAILED {backbone}: {error}", flush=True)
            failures.append(backbone)
    raise SystemExit(f"rehearsal: failed: {', '.join(failures)}" if failures else 0)
