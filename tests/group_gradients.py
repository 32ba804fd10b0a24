"""Write the gradients of one step by as many processes as torchrun starts: python ... settings.json out.pt"""

import json
import sys

import torch

from stylegan2_pytorch import TrainConfig, Trainer
from volumetric.dataset import audit_volumes, read_classes
from volumetric.parallel import process_group


def main(settings_path, out):
    """Both halves of step 5024, which has the gradient penalty and the path length."""
    torch.set_num_threads(1)
    with open(settings_path) as file:
        config = TrainConfig(**json.load(file))
    with process_group("cpu") as group:
        classes = read_classes(config.labels, config.data, config.balance_classes) if config.labels else None
        size = config.image_size
        audit = audit_volumes(config.data, (size, size, config.image_depth))
        audit.classes = classes
        trainer = Trainer(config, audit, group)
        trainer.step, trainer.pl_mean = 5024, 0.1
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
        found |= {f"codes.{k}": q.quantize.codebook for k, q in networks.D.quantizers.items()}
        if group.rank == 0:
            torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
