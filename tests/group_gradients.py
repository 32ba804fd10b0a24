"""Write the gradients of steps by as many processes as torchrun starts: python ... settings.json folder"""

import json
import sys
from pathlib import Path

from volumetric.dataset import audit_volumes, read_classes
from volumetric.parallel import process_group

import torch

from stylegan2_pytorch import TrainConfig, Trainer


def gradients(config, group):
    """Losses and gradients of both halves of step 5024, which has both penalties."""
    classes = read_classes(config.labels, config.data, config.balance_classes) if config.labels else None
    size = config.image_size
    audit = audit_volumes(config.data, (size, size, config.image_depth))
    audit.classes = classes
    trainer = Trainer(config, audit, group)
    trainer.step, trainer.pl_mean = 5024, torch.tensor(0.1, dtype=torch.float64)
    found, networks = {}, trainer.GAN
    for name, optimizer, step in (
        ("D", trainer.D_opt, trainer.discriminator_step),
        ("G", trainer.G_opt, trainer.generator_step),
    ):
        optimizer.step = lambda optimizer=optimizer: None  # the gradients are wanted, not the update
        optimizer.zero_grad = lambda **_: None
        found[name] = {key: float(value) for key, value in step().items()}
    for name in ("S", "G", "D", "CR") if config.cl_reg else ("S", "G", "D"):
        for key, p in getattr(networks, name).named_parameters():
            found[f"{name}.{key}"] = p.grad
    return found | {f"codes.{k}": q.quantize.codebook for k, q in networks.D.quantizers.items()}


def main(settings_path, folder):
    """One file for each of the named settings."""
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        for name, settings in json.loads(Path(settings_path).read_text(encoding="utf-8")).items():
            found = gradients(TrainConfig(**settings), group)
            if group.rank == 0:
                torch.save(found, Path(folder) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
