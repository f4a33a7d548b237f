"""The open labelled sets that the general checkpoint is trained on, as embeddings split by class.

Photos: a PCA to 256 fitted on the training half. Characters (omniglot): a small convolutional network, trained here to tell
the characters of 20 of the 30 background alphabets apart, embeds those of the other 10 (the training half) and of the 20
evaluation alphabets. Digits: the pixels of scikit-learn's 8 x 8 images, even digits against odd ones.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

NPZ = {
    "clinc150": ("clinc150_minilm.npz", 0),
    "caltech101": ("caltech101_efflite0.npz", 256),
    "grocery": ("grocery_efflite0.npz", 256),
}
"""File, and dimensions that a PCA leaves, 0 for no PCA."""

GENERAL = ("clinc150", "caltech101", "grocery", "omniglot")
"""What the general checkpoint is trained on."""

SETS = (*GENERAL, "digits")

ENCODER_ALPHABETS, ENCODER_EPOCHS, ENCODER_DIM = 20, 8, 128


class Half(NamedTuple):
    """The points of one half of the classes."""

    x_ND: np.ndarray
    """float32 unit rows."""
    label_N: np.ndarray
    """int64."""


def load_set(folder: Path, name: str) -> tuple[Half, Half]:
    """The training half and the unseen half of a set; ``folder`` holds the .npz files.

    On one thread: with two, the encoder's weights differ, and omniglot's pairwise F by .003.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _load(folder, name)
    finally:
        torch.set_num_threads(threads)


def half_as_parquet(half: Half) -> bytes:
    """A Parquet file with the columns id, embedding (fixed-size list of float32) and label."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(half.x_ND.ravel()), half.x_ND.shape[1])
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": np.arange(len(half.x_ND)), "embedding": embedding, "label": half.label_N}), file)
    return bytes(file.getvalue())


def _load(folder: Path, name: str) -> tuple[Half, Half]:
    if name == "digits":
        x_ND, label_N = load_digits(return_X_y=True)
        return tuple(_half(x_ND, label_N, label_N % 2 == odd) for odd in (0, 1))  # type: ignore[return-value]
    if name == "omniglot":
        return _load_omniglot(folder / "omniglot_28.npz")
    file, dimensions = NPZ[name]
    with np.load(folder / file) as arrays:
        x_ND, label_N = arrays["emb"].astype(np.float32), arrays["label"].astype(np.int64)
        split_N = np.where(label_N < 0, -1, arrays["class_split"][label_N])  # Points of no class belong to no half.
    x_ND = _unit(x_ND)
    if dimensions:
        x_ND = PCA(dimensions, random_state=0).fit(x_ND[split_N == 0]).transform(x_ND)
    return _half(x_ND, label_N, split_N == 0), _half(x_ND, label_N, split_N == 1)


def _half(x_ND: np.ndarray, label_N: np.ndarray, chosen_N: np.ndarray) -> Half:
    return Half(_unit(x_ND[chosen_N]), label_N[chosen_N].astype(np.int64))


def _unit(x_ND: np.ndarray) -> np.ndarray:
    unit_ND: np.ndarray = (x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit_ND


def _load_omniglot(file: Path) -> tuple[Half, Half]:
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays["images"].astype(np.float32) / 255)[:, None]
        label_N, split_N, alphabet_N = arrays["label"].astype(np.int64), arrays["split"], arrays["alphabet"]
    background = np.unique(alphabet_N[split_N == 0])
    taught = np.random.default_rng(0).permutation(background)[:ENCODER_ALPHABETS]
    taught_N = np.isin(alphabet_N, taught) & (split_N == 0)
    encoder = _train_encoder(images[taught_N], np.unique(label_N[taught_N], return_inverse=True)[1])
    with torch.inference_mode():
        x_ND = torch.cat([encoder.embed(part) for part in torch.split(images, 1024)]).numpy()
    return _half(x_ND, label_N, (split_N == 0) & ~taught_N), _half(x_ND, label_N, split_N == 1)


class _Encoder(nn.Module):
    """Three convolutions with pooling, an embedding, and a cosine classifier that is thrown away."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, ENCODER_DIM), nn.BatchNorm1d(ENCODER_DIM))
        self.centre_CD = nn.Parameter(torch.randn(classes, ENCODER_DIM) * 0.05)

    def embed(self, images: Tensor) -> Tensor:
        """Unit rows."""
        return functional.normalize(self.body(images), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits."""
        return 20 * self.embed(images) @ functional.normalize(self.centre_CD, dim=1).T


def _train_encoder(images: Tensor, class_N: np.ndarray) -> _Encoder:
    torch.manual_seed(0)
    target_N = torch.from_numpy(class_N)
    encoder = _Encoder(int(target_N.max()) + 1)
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    batches = len(images) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=ENCODER_EPOCHS * batches)
    for _ in range(ENCODER_EPOCHS):
        for batch in torch.split(torch.randperm(len(images))[: batches * 128], 128):
            logits = encoder(_distorted(images[batch]))
            loss = functional.cross_entropy(logits, target_N[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return encoder.eval()


def _distorted(images: Tensor) -> Tensor:
    """Turned by up to 14 degrees, scaled by up to 15%, moved by up to 2 pixels."""
    count = len(images)
    angle, scale = (torch.rand(count) - 0.5) * 0.5, 1 + (torch.rand(count) - 0.5) * 0.3
    move = (torch.rand(count, 2) - 0.5) * 0.3
    rows = [
        torch.stack([torch.cos(angle) * scale, -torch.sin(angle) * scale, move[:, 0]], 1),
        torch.stack([torch.sin(angle) * scale, torch.cos(angle) * scale, move[:, 1]], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
