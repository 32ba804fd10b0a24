"""A second network of whole volumes: ResEnc-L of OpenMind, trained on 114,000 MRI of heads without labels.

MedicalNet's ResNet-10 is of 2019 and learnt to segment. This encoder (Wald et al. 2024, arXiv:2412.17041)
learnt to fill in masked parts of MRI of heads. Its layout is nnU-Net's residual encoder L (Isensee et al.
2024, arXiv:2404.09556): six stages of residual blocks (ResNet-D, He et al. 2019, arXiv:1812.01187), 3 x 3 x 3
convolutions, instance normalisation, leaky ReLU.

The tensors have the names of the published file `checkpoint_final.pth` (Hugging Face
AnonRes/ResEncL-OpenMind-MAE, CC BY 4.0): `network_weights` with `encoder.stem` and `encoder.stages`, as nnssl
(github.com/MIC-DKFZ/nnssl) writes them; what else is there, the decoder, is left alone. Other OpenMind files
of ResEnc-L have the same names.
"""

from collections import OrderedDict

from volumetric.parallel import tf32

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from torch import nn

from MedicalNet.extractors import network_of, randomly
from MedicalNet.resnet import read_weights

CHANNELS = (32, 64, 128, 256, 320, 320)  # of the stages; each but the first halves every axis
BLOCKS = (1, 3, 4, 6, 6, 6)  # residual blocks of the stages
SPACING = 1.0  # mm, of what the encoder was trained on
STAGE = 4  # stages that are computed
MULTIPLE = 32  # voxels by which an axis can be halved at every stage
LEAST = (32, 64, 64)  # voxels, Z, Y, X: an instance normalisation of one voxel is no number


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Network                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Convolution(nn.Module):
    """A convolution and an instance normalisation. Shapes: (B, C_in, D, H, W) -> (B, C_out, ...)"""

    def __init__(self, in_channels, channels, edge=3, stride=1, bias=True):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, edge, stride, padding=edge // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(channels, affine=True)

    def forward(self, x):
        return self.norm(self.conv(x))


def rectify(x):
    """Leaky ReLU, in place."""
    return nn.functional.leaky_relu_(x, 0.01)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut that averages before it projects (arXiv:1812.01187, Fig. 2c).

    Shapes: (B, C_in, D, H, W) -> (B, C_out, D / stride, H / stride, W / stride)
    """

    def __init__(self, in_channels, channels, stride=1):
        super().__init__()
        self.conv1 = Convolution(in_channels, channels, stride=stride)
        self.conv2 = Convolution(channels, channels)
        shortcut = [nn.AvgPool3d(stride)] if stride > 1 else []
        if in_channels != channels:
            shortcut.append(Convolution(in_channels, channels, edge=1, bias=False))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x):
        return rectify(self.conv2(rectify(self.conv1(x))) + self.skip(x))


class ResidualEncoder(nn.Module):
    """The encoder, up to one of its stages.

    Args:
        stages: How many of them.

    Shapes: (B, 1, D, H, W), each a multiple of 2^(stages - 1) -> (B, C, D / 2^(stages - 1), ...)
    """

    def __init__(self, stages=STAGE):
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(convs=nn.Sequential(Convolution(1, CHANNELS[0]))))
        found, before = [], CHANNELS[0]
        for stage, (channels, number) in enumerate(zip(CHANNELS[:stages], BLOCKS, strict=False)):
            first = ResidualBlock(before, channels, stride=2 if stage else 1)
            rest = [ResidualBlock(channels, channels) for _ in range(number - 1)]
            found.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *rest))))
            before = channels
        self.stages = nn.Sequential(*found)

    def forward(self, x):
        return self.stages(rectify(self.stem(x)))


def build_openmind(path, device):
    """The encoder up to STAGE, in evaluation mode; random weights without a path.

    Raises:
        UserError: The file is missing, damaged, or holds another network.
    """
    network = ResidualEncoder()
    if path is None:
        randomly(network)
    else:
        expected = {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()}
        state = read_weights(path, expected, "OpenMind", "the encoder ResEnc-L", inside="network_weights")
        network.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()})
    network.eval().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last_3d)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Features                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class OpenMindFeatures:
    """Features of a volume as a whole, of the encoder of OpenMind, always in float32.

    As its authors prepare volumes (adaptation_plan.json beside their weights): minus the mean and over the
    standard deviation of all voxels, then voxels of 1 mm by cubic interpolation. What departs: the whole
    volume in one pass, with 0 around it up to a multiple of MULTIPLE voxels, in place of patches of 160; and
    the map of the fourth of six stages, a vector for every 8 mm, averaged. A volume of 64 x 64 x 20 mm
    has four vectors in the last map, too few to be normalised by themselves.

    Args:
        network: Of `build_openmind`.
        digest: SHA-256 of its weights, or "random".
    """

    name = "openmind"
    version = 1  # of the code behind the protocol: raise it when the features change
    dimension = CHANNELS[STAGE - 1]
    on_host = False

    def __init__(self, network, digest):
        self.network, self.digest = network, digest
        self.device = next(network.parameters()).device
        self.protocol = (
            f"whole volume, axes (Z, Y, X); standardised by mean and standard deviation of all voxels; "
            f"resampled to {SPACING:g} mm, cubic; 0 around it up to a multiple of {MULTIPLE} voxels; "
            f"{network_of('OpenMind ResEnc-L (brain MRI, no labels)', digest)}, map of stage {STAGE} of "
            f"{len(CHANNELS)} averaged to {self.dimension} features; float32"
        )

    @torch.inference_mode()
    def __call__(self, array, affine):
        """Shapes: (X, Y, Z) -> {"features": (1, 256) float32}"""
        volume = torch.from_numpy(prepared(array, voxel_sizes(affine)))[None, None].to(self.device)
        with tf32(False):
            return {"features": self.network(volume).mean(dim=(2, 3, 4)).cpu().numpy()}


def prepared(array, spacing):
    """A volume as the encoder takes it.

    Args:
        array: (X, Y, Z).
        spacing: Voxel sizes along X, Y, Z, mm.

    Shapes: -> (Z, Y, X) float32, multiples of MULTIPLE and at least LEAST, of SPACING mm
    """
    from skimage.transform import resize

    array = array.astype(np.float32)
    array = (array - array.mean()) / (array.std() or 1)
    shape = [max(1, round(n * mm / SPACING)) for n, mm in zip(array.shape, spacing, strict=True)]
    array = resize(array, shape, order=3, mode="edge", anti_aliasing=False, clip=True).transpose(2, 1, 0)
    wanted = [max(least, -(-n // MULTIPLE) * MULTIPLE) for n, least in zip(array.shape, LEAST, strict=True)]
    around = [((w - n) // 2, w - n - (w - n) // 2) for w, n in zip(wanted, array.shape, strict=True)]
    return np.pad(array, around)
