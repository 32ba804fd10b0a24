"""From volumes to features: weights, networks, and a cache that cannot be stale.

Two networks look at a volume. Inception sees its slices, as in the Frechet inception distance (Heusel et al.
2017, arXiv:1706.08500): the graph of 2015 as torch-fidelity carries it. MedicalNet's ResNet-10 (Chen, Ma and
Zheng 2019, arXiv:1904.00625) sees the volume as a whole. With random weights, both give features that need no
download (Naeem et al. 2020, arXiv:2002.09797, Sec. 5).
"""

import functools
import hashlib
import io
import json
import os
import sys
import threading
import urllib.error
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import atomic_path, file_digest
from volumetric.parallel import host_random, tf32

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from MedicalNet.resnet import ResNet10, read_weights

# The axis of (X, Y, Z) along which the slices of a plane follow each other.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
INCEPTION_EDGE = 299  # pixels of the network's input
RANDOM_SEED = 0  # of the weights of `--embedding random`
SLICES_AT_ONCE = 8  # on a CPU: more do not fit its caches
PLACES = 4  # cells along X and along Y in which placed features are averaged
A_PLACE = 32  # placed features of a cell
STEM_LAYERS = 3  # of Inception that mixed precision leaves in float32: their rounding is most of the error


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Weights                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Weights:
    """A published file of weights.

    Args:
        title: What it belongs to.
        flag: The flag that names a local copy.
        url: Where it is published.
        sha256: Of the published file.
    """

    title: str
    flag: str
    url: str
    sha256: str

    @property
    def target(self):
        """Where the download goes, and where an earlier one is looked for."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[1]


PUBLISHED = {
    "medicalnet": Weights(
        title="MedicalNet ResNet-10",
        flag="--medicalnet_weights",
        url="https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet10/resolve/main/resnet_10_23dataset.pth",
        sha256="afa8055f3e47f4a18239495d92a7abc587902c69c31c743de2b2784653b72605",
    ),
    "inception": Weights(
        title="FID Inception",
        flag="--inception_weights",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
}


def find_weights(name, path=None):
    """Path and SHA-256 of a network's weights: the given file, an earlier download, or a new one.

    Args:
        name: A name out of PUBLISHED.
        path: Local file, or None to look for the published one.

    Raises:
        UserError: There are none and they cannot be downloaded, or a download is damaged.
    """
    published = PUBLISHED[name]
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"{published.flag} {path} does not exist: give the file of the weights.")
        return Path(path), file_digest(path)
    target = published.target
    if not target.exists():
        download(published)
    digest = file_digest(target)
    if digest != published.sha256:
        raise UserError(
            f"{target} has SHA-256 {digest}, but the published {published.title} weights have "
            f"{published.sha256}: remove the file, and it will be downloaded again."
        )
    return target, digest


def download(published):
    """Download published weights to their target, with a progress bar; a wrong hash leaves nothing behind."""
    target = published.target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Downloading {published.url} to {target}")
    try:
        torch.hub.download_url_to_file(published.url, str(target), hash_prefix=published.sha256)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"The {published.title} weights are not here and cannot be downloaded ({reason}): get "
            f"{published.url} on another machine and put it at {target}, or give its path with "
            f"{published.flag}."
        ) from None


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def randomly(network):
    """Fill a network with random weights of a fixed seed that keep variances (arXiv:1502.01852, Eq. 10)."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
    return network


def build_medicalnet(path, device):
    """MedicalNet's ResNet-10, in evaluation mode; random weights without a path."""
    network = ResNet10()
    if path is None:
        randomly(network)
    else:
        network.load_state_dict(read_weights(path, network.state_dict()))
    network.eval().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last_3d)


def build_inception(path, device, mixed=False):
    """FID's Inception up to its 2048 pooled features, for grey slices, without batch normalisation: fast.

    What it computes is unchanged but for rounding: a batch normalisation with fixed statistics is part of the
    convolution before it, and a kernel that sees the same slice in three channels is the sum over them.

    Args:
        path: File of the weights; None for random ones.
        device: torch.device.
        mixed: Compute all but the first STEM_LAYERS in bfloat16.

    Shapes: (B, 1, 299, 299) with values in [-1, 1] -> (B, 2048)
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Extractor(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True):
            """Nothing: the weights come later, from a file that is read without running its pickled code."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    extractor = Extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    if path is None:
        randomly(extractor)
    else:
        state = read_weights(path, extractor.state_dict(), "Inception", "FID")
        nn.Module.load_state_dict(extractor, state)
    for module in extractor.modules():
        if hasattr(module, "bn"):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
            module.forward = functools.partial(convolve_and_rectify, module.conv)
    layers = [layer for name, layer in extractor.named_children() if name != "fc"]
    first = layers[0].conv
    first.weight = nn.Parameter(first.weight.sum(dim=1, keepdim=True))
    first.in_channels = 1
    body = nn.Sequential(*layers[STEM_LAYERS:], nn.Flatten())
    if mixed:
        body = nn.Sequential(ToBFloat16(), body.to(torch.bfloat16))
    network = nn.Sequential(*layers[:STEM_LAYERS], body).eval().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last)


class ToBFloat16(nn.Module):
    """Rounds to bfloat16. Shapes: any"""

    def forward(self, x):
        return x.to(torch.bfloat16)


def convolve_and_rectify(convolution, x):
    """ReLU of a convolution, in place."""
    return torch.relu_(convolution(x))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Extractors                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def network_of(name, digest):
    """What a protocol says of a network."""
    return f"{name.split(' (')[0].split(' 2015')[0]} with random weights" if digest == "random" else name


class SliceFeatures:
    """Inception features of the slices of a volume in one plane.

    The protocol is the paper's: every slice is scaled by its own minimum and maximum to 8 bit (a constant
    slice is black) and enlarged as in FID. Coronal and sagittal slices are as many as axial ones, evenly
    spread.

    Args:
        network: Of `build_inception`.
        digest: SHA-256 of its weights, or "random".
        plane: A name out of PLANES.
    """

    version = 1  # of the code behind the protocol: raise it when the features change
    dimension = 2048
    on_host = False

    def __init__(self, network, digest, plane):
        self.network, self.digest, self.name = network, digest, plane
        self.device = next(network.parameters()).device
        self.mixed = any(p.dtype == torch.bfloat16 for p in network.parameters())
        self.protocol = (
            f"{plane} slices, {'all' if plane == 'axial' else 'as many as axial ones, evenly spread'}; each "
            f"scaled by its own minimum and maximum to 8 bit, rounded; grey as RGB; resized to 299 x 299 as "
            f"in TensorFlow 1; {network_of('Inception 2015-12-05', digest)}, pool3, 2048 features; "
            f"{'mixed bfloat16' if self.mixed else 'float32'}"
        )

    @torch.inference_mode()
    def __call__(self, array, affine):
        """Shapes: (X, Y, Z) -> {"features": (Z, 2048) float32}"""
        axis = PLANES[self.name]
        volume = torch.from_numpy(array).to(self.device)
        places = (torch.arange(array.shape[2]) + 0.5) * array.shape[axis] / array.shape[2]
        slices = volume.index_select(axis, places.long().to(self.device)).movedim(axis, 0)
        low, high = slices.flatten(1).aminmax(dim=1)
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        slices = ((slices - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 255).round_()
        slices = ((enlarge(slices) - 128) / 128)[:, None]
        at_once = SLICES_AT_ONCE if self.device.type == "cpu" else len(slices)
        with tf32(self.mixed):
            features = torch.cat([self.network(chunk) for chunk in slices.split(at_once)])
        return {"features": features.float().cpu().numpy()}


# Stages of ResNet-50 as RadImageNet's files number them, and as torchvision names them.
STAGES = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}
RADIMAGENET_EDGE = 224  # pixels of the network's input


def build_radimagenet(path, device):
    """ResNet-50 of RadImageNet (Mei et al. 2022, doi:10.1148/ryai.210315) up to its 2048 pooled features.

    A second opinion of slices, by a network that has seen radiological images alone: Woodland et al.
    (arXiv:2311.13717) advise to report both.

    Args:
        path: File of the PyTorch weights, ResNet50.pt; torchvision's names are taken too.
        device: torch.device.

    Shapes: (B, 3, 224, 224) with values in [-1, 1] -> (B, 2048)
    """
    from torchvision.models import resnet50

    network = resnet50()
    network.fc = nn.Identity()
    renamed = [(f"backbone.{n}.", f"{name}.") for n, name in STAGES.items()]
    state = read_weights(path, network.state_dict(), "RadImageNet", "ResNet-50", renamed)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


class RadiologicalFeatures(SliceFeatures):
    """RadImageNet features of the axial slices of a volume; scaled slice by slice as for Inception."""

    version = 1
    protocol = (
        "axial slices, all; each scaled by its own minimum and maximum to [-1, 1]; grey as RGB; resized to "
        "224 x 224, bilinearly; RadImageNet ResNet-50, 2048 pooled features; float32"
    )

    def __init__(self, network, digest):
        self.network, self.digest, self.name = network, digest, "radimagenet"
        self.device = next(network.parameters()).device

    @torch.inference_mode()
    def __call__(self, array, affine):
        """Shapes: (X, Y, Z) -> {"features": (Z, 2048) float32}"""
        slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 2, 0))).to(self.device)
        low, high = slices.flatten(1).aminmax(dim=1)
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        slices = (slices - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 2 - 1
        slices = F.interpolate(slices[:, None], 2 * [RADIMAGENET_EDGE], mode="bilinear", antialias=True)
        with tf32(False):
            chunks = [self.network(s.expand(-1, 3, -1, -1)) for s in slices.split(SLICES_AT_ONCE)]
        return {"features": torch.cat(chunks).float().cpu().numpy()}


def enlarge(slices):
    """Resize slices to Inception's input, bilinearly as TensorFlow 1. Shapes: (N, H, W) -> (N, 299, 299)"""
    _, height, width = slices.shape
    rows, columns = interpolation_matrix(height, slices.device), interpolation_matrix(width, slices.device)
    return rows @ slices @ columns.T


@functools.lru_cache
def interpolation_matrix(size, device):
    """Linear interpolation from `size` to INCEPTION_EDGE pixels, corners not aligned. Shapes: (299, size)"""
    places = torch.arange(INCEPTION_EDGE, dtype=torch.float32) * (size / INCEPTION_EDGE)
    before = places.long()
    after = (before + 1).clamp_max(size - 1)
    share = places - before
    matrix = torch.zeros(INCEPTION_EDGE, size)
    row = torch.arange(INCEPTION_EDGE)
    matrix[row, before] += 1 - share
    matrix[row, after] += share
    return matrix.to(device)


class VolumeFeatures:
    """MedicalNet features of a volume as a whole, and of its places, always in float32.

    The protocol is the paper's: the volume is standardised by the mean and standard deviation of its voxels
    above 0, voxels equal to 0 become standard-normal noise, and the axes are in the order (X, Y, Z). The
    noise has a seed of its own, the volume's content, so that equal volumes have equal features.

    Averaged over the whole volume, features do not say where something is: front and back can be exchanged.
    The placed ones, of the same feature map, are averaged in PLACES x PLACES cells in-plane; those of a cell
    are projected to A_PLACE random directions of its own, which keeps distances but for a few percent.

    Args:
        network: Of `build_medicalnet`.
        digest: SHA-256 of its weights, or "random".
    """

    name = "volume"
    also = ("placed",)  # what it gives beside, by name
    version = 2  # as of SliceFeatures
    dimension = 512
    on_host = False

    def __init__(self, network, digest):
        self.network, self.digest = network, digest
        self.protocol = (
            f"whole volume, axes (X, Y, Z); standardised by mean and standard deviation of the voxels > 0; "
            f"voxels equal to 0 replaced by N(0, 1) noise, seeded by the volume's content; "
            f"{network_of('MedicalNet ResNet-10 (23 data sets)', digest)}, last feature map averaged to 512 "
            f"features; float32; placed: averaged in {PLACES} x {PLACES} cells in-plane, {A_PLACE} random "
            f"directions of each"
        )
        self.device = next(network.parameters()).device
        shape = PLACES**2, self.dimension, A_PLACE
        directions = host_random(RANDOM_SEED).standard_normal(shape, dtype=np.float32) / A_PLACE**0.5
        self.directions = torch.from_numpy(directions).to(self.device)

    @torch.inference_mode()
    def of_batch(self, arrays):
        """Features of volumes of one shape, which do not depend on which others are there.

        A batch of one has kernels of its own, which round differently and take as long as two.

        Shapes: n of (X, Y, Z) -> n of {"features": (1, 512) float32, "placed": (1, 512) float32}
        """
        twice = 2 if len(arrays) == 1 else 1
        volumes = torch.from_numpy(np.stack([standardized(a) for a in arrays])[:, None]).to(self.device)
        with tf32(False):
            maps = self.network.feature_map(volumes.repeat(twice, 1, 1, 1, 1))
            features = maps.mean(dim=(2, 3, 4)).cpu().numpy()
            placed = [self.placed(maps[n]).cpu().numpy() for n in range(len(arrays))]
        return [{"features": features[n : n + 1], "placed": placed[n]} for n in range(len(arrays))]

    def placed(self, feature_map):
        """Placed features of one volume. Shapes: (512, X, Y, Z) -> (1, PLACES * PLACES * A_PLACE)"""
        cells = F.adaptive_avg_pool3d(feature_map, (PLACES, PLACES, 1)).flatten(1)  # (512, cells)
        return (cells.T[:, None] @ self.directions).reshape(1, -1)

    def __call__(self, array, affine):
        """Shapes: (X, Y, Z) -> {"features": (1, 512) float32, "placed": (1, 512) float32}"""
        return self.of_batch([array])[0]


def standardized(array):
    """A volume as MedicalNet takes it: standardised by its voxels > 0, with noise where it is 0.

    Voxels > 0 that are all equal are centred alone: what a generator makes at first has features too.

    Shapes: (X, Y, Z) -> (X, Y, Z) float32
    """
    positive = array[array > 0].astype(np.float64)
    mean, deviation = (positive.mean(), positive.std() or 1) if positive.size else (0, 1)
    seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(array)).digest()[:8], "little")
    noise = host_random(seed).standard_normal(array.shape, dtype=np.float32)
    return np.where(array == 0, noise, ((array - mean) / deviation).astype(np.float32))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Cache                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


# numpy parses a file's header as Python, which CPython 3.11 cannot do in two threads at once (gh-106905).
ONE_PARSER = threading.Lock()


class FeatureCache:
    """What was computed from a file, found again by the content of everything it was computed from.

    Args:
        folder: Where the results are kept; None keeps none.
        renew: Compute again what is there.
    """

    def __init__(self, folder, renew=False):
        self.folder = None if folder is None else Path(folder)
        self.renew = renew

    def path(self, key):
        """File of a result; `key` is any JSON value that names all that it depends on."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.npz"

    def get(self, key):
        """{name: array} of an earlier result, or None."""
        if self.folder is None or self.renew:
            return None
        try:
            with ONE_PARSER, np.load(self.path(key), allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception:  # whatever a damaged file raises
            return None

    def put(self, key, arrays):
        """Keep a result."""
        if self.folder is None:
            return
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                np.savez(part, **arrays)
        except OSError as error:
            print(
                f"Warning: {self.folder} cannot be written to ({error}): going on without.", file=sys.stderr
            )
            self.folder = None


def default_cache():
    """Folder of the cache: stylegan2-pytorch-3d in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylegan2-pytorch-3d"
