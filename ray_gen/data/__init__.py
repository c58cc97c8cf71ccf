"""Images: each node decodes a source once, to a uint8 store that all its workers map."""

from ray_gen.data.errors import DataError
from ray_gen.data.sources.builtin import Mnist5k
from ray_gen.data.sources.folder import ImageFolder
from ray_gen.data.sources.parquet import Parquet
from ray_gen.data.sources.torchvision import TorchvisionDataset
from ray_gen.data.store import Split, Store, open_store, open_stream

__all__ = [
    "DataError",
    "ImageFolder",
    "Mnist5k",
    "Parquet",
    "Split",
    "Store",
    "TorchvisionDataset",
    "open_store",
    "open_stream",
]
