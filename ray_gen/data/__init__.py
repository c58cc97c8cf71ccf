"""Images: each node decodes a source once, to a uint8 store that all its workers map."""

from ray_gen.data.errors import DataError
from ray_gen.data.sources.archives import ImageZip
from ray_gen.data.sources.arrow_folder import ArrowFolder
from ray_gen.data.sources.builtin import Mnist5k
from ray_gen.data.sources.folder_1 import ImageFolder1
from ray_gen.data.sources.images import ImageFolder
from ray_gen.data.sources.joined import Joined
from ray_gen.data.sources.latents import Latents
from ray_gen.data.sources.lists import ImageList
from ray_gen.data.sources.parquet import Parquet
from ray_gen.data.sources.tars import ImageTar
from ray_gen.data.sources.torchvision import TorchvisionDataset
from ray_gen.data.store import Split, Store, open_store, open_stream

__all__ = [
    "ArrowFolder",
    "DataError",
    "ImageFolder",
    "ImageFolder1",
    "ImageList",
    "ImageTar",
    "ImageZip",
    "Joined",
    "Latents",
    "Mnist5k",
    "Parquet",
    "Split",
    "Store",
    "TorchvisionDataset",
    "open_store",
    "open_stream",
]
