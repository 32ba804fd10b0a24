"""MedicalNet's 3D ResNet-10 as a feature extractor (Chen, Ma and Zheng 2019, arXiv:1904.00625).

The tensors have the names of the published weights `resnet_10_23dataset.pth`, so that they load as they are.
"""

from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import as_damaged

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with batch normalisation beside an identity or a strided 1x1x1 convolution.

    Shapes: (B, C_in, D, H, W) -> (B, C_out, D / stride, H / stride, W / stride)
    """

    def __init__(self, in_channels, channels, stride=1, dilation=1):
        super().__init__()
        spread = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, **spread)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, **spread)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or in_channels != channels:
            shortcut = nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(channels))

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + skip)


class ResNet10(nn.Module):
    """ResNet-10 with dilated last stages, its last feature map averaged over all voxels.

    Shapes: volume (B, 1, X, Y, Z) -> features (B, 512)
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, stride=2))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, dilation=2))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, dilation=4))

    def feature_map(self, x):
        """The last feature map. Shapes: (B, 1, X, Y, Z) -> (B, 512, X / 8, Y / 8, Z / 8)"""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.feature_map(x).mean(dim=(2, 3, 4))


def resnet10(weights=None):
    """The feature extractor, in evaluation mode.

    Args:
        weights: Path of `resnet_10_23dataset.pth`, or None for random weights.

    Raises:
        UserError: The file is missing, damaged, or holds another network.
    """
    network = ResNet10()
    if weights is not None:
        network.load_state_dict(read_weights(weights, network.state_dict()))
    return network.eval()


def read_weights(path, expected, title="MedicalNet", network="ResNet-10", renamed=(), inside="state_dict"):
    """Tensors of a file of weights by the names of `expected`, without `module.` and whatever else is there.

    Args:
        path: The file; it is read without running pickled code.
        expected: State dict of the network that they are for.
        title, network: What the errors call them.
        renamed: Pairs (beginning of a name in the file, beginning of the name that is expected).
        inside: Under which name the file may keep the tensors.

    Raises:
        UserError: The file is missing, damaged, or holds another network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{title} weights {path} do not exist: give the path of the published file.")
    with as_damaged("give the published file", f"{title} weights {path}"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get(inside, state) if isinstance(state, dict) else {}
        state = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    for there, wanted in renamed:
        state = {
            wanted + name.removeprefix(there) if name.startswith(there) else name: tensor
            for name, tensor in state.items()
        }
    for name, tensor in expected.items():
        if name not in state or getattr(state[name], "shape", None) != tensor.shape:
            raise UserError(
                f"{title} weights {path} are not those of {network}: {name} is missing or different."
            )
    return {name: state[name] for name in expected}
