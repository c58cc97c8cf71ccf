"""What ray_gen is measured against: the training loops of other projects, with their data paths.

The loops of pytorch/examples are written anew after `vae/main.py` and `dcgan/main.py`: the same
networks, losses, optimisers, loaders and device-to-host copies, without their test epochs, picture
files and log lines. pythae is not rewritten: its own trainer runs its own `train_step`. diffusers'
module trains in a plain loop. The digits come from torchvision's MNIST class. Images of 64 x 64
come from memory, while ImageFolder decodes files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset


class PerImage(Dataset[tuple[Tensor, int]]):
    """uint8 images (N, H, W, C), returned one by one as torchvision does: PIL, then transforms.

    `ImageFolder` also decodes files. This class does not.
    """

    def __init__(
        self, images_NHWC: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self._pixels = (
            images_NHWC.squeeze(3) if images_NHWC.shape[3] == 1 else images_NHWC
        ).numpy()
        self._labels = labels
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), int(self._labels[index])


def write_mnist(folder: Path, images_NHWC: Tensor, labels: Tensor) -> None:
    """Writes images (N, 28, 28, 1) and labels as the files that torchvision's MNIST reads (IDX)."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images_NHWC.squeeze(3)), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            magic = bytes([0, 0, 8, values.dim()])  # unsigned bytes, number of axes
            content = magic + sizes + values.to(torch.uint8).numpy().tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(content)


class Epochs:
    """A loader's batches, epoch after epoch. Iterating takes the next `steps` of them. The time to
    start an epoch, including its worker processes, counts in the batch that it delays."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset = loader.dataset
        self.steps = 1
        self.images = 0
        """Images returned so far."""
        self._batches = self._endless(loader)

    def _endless(self, loader: DataLoader[Any]) -> Iterator[Any]:
        while True:
            for batch in loader:
                self.images += len(batch["data"] if isinstance(batch, dict) else batch[0])
                yield batch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return islice(self._batches, self.steps)


class ExampleVaeNetwork(nn.Module):
    """784-400-(20, 20), 20-400-784 with ReLU and sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 400)
        self.mean = nn.Linear(400, 20)
        self.log_variance = nn.Linear(400, 20)
        self.expand = nn.Linear(20, 400)
        self.pixels = nn.Linear(400, 784)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (N, 1, 28, 28) to probabilities (N, 784), μ and log σ² (N, 20)."""
        hidden = F.relu(self.hidden(images.view(-1, 784)))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        sigma = torch.exp(0.5 * log_variance)
        z = mean + torch.randn_like(sigma) * sigma
        return torch.sigmoid(self.pixels(F.relu(self.expand(z)))), mean, log_variance


def example_vae_loss(
    probabilities: Tensor, images: Tensor, mean: Tensor, log_variance: Tensor
) -> Tensor:
    """Binary cross-entropy and KL, summed over pixels and batch."""
    cross_entropy = F.binary_cross_entropy(probabilities, images.view(-1, 784), reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return cross_entropy + kl


class ExampleVae:
    """pytorch/examples `vae/main.py`: batch 128, Adam 1e-3, the loss read back at every step."""

    def __init__(self, images_NHWC: Tensor, labels: Tensor, device: torch.device) -> None:
        from torchvision import datasets, transforms

        on_gpu = {"num_workers": 1, "pin_memory": True} if device.type == "cuda" else {}
        with TemporaryDirectory() as folder:
            write_mnist(Path(folder), images_NHWC, labels)
            dataset = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
        self.batches = Epochs(DataLoader(dataset, batch_size=128, shuffle=True, **on_gpu))
        self.device = device
        self.model = ExampleVaeNetwork().to(device)
        self.optimizer = optim.Adam(self.model.parameters(), lr=1e-3)
        self.train_loss = 0.0

    def run(self, steps: int) -> int:
        """Trains for `steps` steps. Returns the images seen."""
        before, self.batches.steps = self.batches.images, steps
        self.model.train()
        for images, _ in self.batches:
            images = images.to(self.device)
            self.optimizer.zero_grad()
            probabilities, mean, log_variance = self.model(images)
            loss = example_vae_loss(probabilities, images, mean, log_variance)
            loss.backward()
            self.train_loss += loss.item()
            self.optimizer.step()
        return self.batches.images - before


def _example_dcgan_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def example_generator() -> nn.Sequential:
    """z (N, 100, 1, 1) to images (N, 3, 64, 64) in (-1, 1); no convolution has a bias."""
    layers: list[nn.Module] = []
    inputs = 100
    for outputs, stride, padding in ((512, 1, 0), (256, 2, 1), (128, 2, 1), (64, 2, 1)):
        layers += [
            nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
        inputs = outputs
    layers += [nn.ConvTranspose2d(inputs, 3, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers).apply(_example_dcgan_weights)


def example_discriminator() -> nn.Sequential:
    """images (N, 3, 64, 64) to probabilities (N, 1, 1, 1); no convolution has a bias."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for inputs in (64, 128, 256):
        layers += [
            nn.Conv2d(inputs, 2 * inputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * inputs),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    layers += [nn.Conv2d(512, 1, 4, 1, 0, bias=False), nn.Sigmoid()]
    return nn.Sequential(*layers).apply(_example_dcgan_weights)


class ExampleDcgan:
    """pytorch/examples `dcgan/main.py`: batch 64, two loader processes, five values read back at
    every step."""

    def __init__(self, images_NHWC: Tensor, labels: Tensor, device: torch.device) -> None:
        from torchvision import transforms

        transform = transforms.Compose(
            [
                transforms.Resize(64),
                transforms.CenterCrop(64),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )
        dataset = PerImage(images_NHWC, labels, transform)
        self.batches = Epochs(DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2))
        self.device = device
        self.generator = example_generator().to(device)
        self.discriminator = example_discriminator().to(device)
        self.criterion = nn.BCELoss()
        adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
        self.discriminator_optimizer = optim.Adam(self.discriminator.parameters(), **adam)
        self.generator_optimizer = optim.Adam(self.generator.parameters(), **adam)
        self.last: dict[str, float] = {}

    def run(self, steps: int) -> int:
        """Trains for `steps` steps. Returns the images seen."""
        before, self.batches.steps = self.batches.images, steps
        others = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # as the script sets it
        for images, _ in self.batches:
            self._step(images)
        torch.backends.cudnn.benchmark = others
        return self.batches.images - before

    def _step(self, images: Tensor) -> None:
        self.discriminator.zero_grad()
        real = images.to(self.device)
        count = real.size(0)
        target = torch.full((count,), 1.0, dtype=real.dtype, device=self.device)
        output = self.discriminator(real).view(-1)
        loss_real = self.criterion(output, target)
        loss_real.backward()
        d_x = output.mean().item()

        noise = torch.randn(count, 100, 1, 1, device=self.device)
        fake = self.generator(noise)
        target.fill_(0.0)
        output = self.discriminator(fake.detach()).view(-1)
        loss_fake = self.criterion(output, target)
        loss_fake.backward()
        d_g_z1 = output.mean().item()
        loss_discriminator = loss_real + loss_fake
        self.discriminator_optimizer.step()

        self.generator.zero_grad()
        target.fill_(1.0)
        output = self.discriminator(fake).view(-1)
        loss_generator = self.criterion(output, target)
        loss_generator.backward()
        d_g_z2 = output.mean().item()
        self.generator_optimizer.step()

        self.last = {
            "Loss_D": loss_discriminator.item(),
            "Loss_G": loss_generator.item(),
            "D(x)": d_x,
            "D(G(z)) before": d_g_z1,
            "D(G(z)) after": d_g_z2,
        }


class PythaeVae:
    """pythae: its VAE with networks of our sizes, and its `BaseTrainer.train_step` over its own
    `DataLoader`; without its progress bar, evaluation and checkpoints."""

    def __init__(self, images_NHWC: Tensor, labels: Tensor, device: torch.device) -> None:
        """Raises ImportError if pythae is not installed."""
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

        logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)

        class Encoder(BaseEncoder):
            def __init__(self) -> None:
                BaseEncoder.__init__(self)
                self.hidden = nn.Sequential(nn.Linear(784, 400), nn.ReLU())
                self.embedding = nn.Linear(400, 20)
                self.log_variance = nn.Linear(400, 20)

            def forward(self, x: Tensor) -> Any:
                hidden = self.hidden(x.reshape(-1, 784))
                return ModelOutput(
                    embedding=self.embedding(hidden), log_covariance=self.log_variance(hidden)
                )

        class Decoder(BaseDecoder):
            def __init__(self) -> None:
                BaseDecoder.__init__(self)
                self.layers = nn.Sequential(
                    nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid()
                )

            def forward(self, z: Tensor) -> Any:
                return ModelOutput(reconstruction=self.layers(z).reshape(-1, 1, 28, 28))

        config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
        self.model = VAE(config, Encoder(), Decoder())
        images = images_NHWC.permute(0, 3, 1, 2).float() / 255.0
        self.trainer = BaseTrainer(
            self.model,
            BaseDataset(images, labels),
            training_config=BaseTrainerConfig(
                per_device_train_batch_size=128,
                learning_rate=1e-3,
                optimizer_cls="Adam",
                no_cuda=device.type != "cuda",
            ),
        )
        self.trainer.set_optimizer()
        self.trainer.set_scheduler()
        self.trainer.callback_handler = CallbackHandler([TrainingCallback()], self.model)
        self.batches = self.trainer.train_loader = Epochs(self.trainer.train_loader)

    def run(self, steps: int) -> int:
        """Trains for `steps` steps. Returns the images seen."""
        before, self.batches.steps = self.batches.images, steps
        self.trainer.train_step(epoch=1)
        return self.batches.images - before


class DiffusersAutoencoder:
    """diffusers: its `AutoencoderKL` with maps of an eighth of the side and width 32, in a plain
    loop: L1 and KL, an average of the weights, and the loss read at every step."""

    def __init__(self, images_NHWC: Tensor, labels: Tensor, device: torch.device) -> None:
        """Raises ImportError if diffusers is not installed."""
        from diffusers import AutoencoderKL
        from torchvision import transforms

        self.model = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=["UpDecoderBlock2D"] * 4,  # pyright: ignore[reportArgumentType]
            block_out_channels=[32, 64, 128, 128],  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
            norm_num_groups=8,
        ).to(device)
        self.average = optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.999)
        )
        self.optimizer = optim.Adam(self.model.parameters(), lr=7.2e-5, betas=(0.5, 0.9))
        self.device = device
        of_range = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
        self.batches = Epochs(
            DataLoader(PerImage(images_NHWC, labels, of_range), batch_size=16, shuffle=True)
        )
        self.last = 0.0

    def run(self, steps: int) -> int:
        """Trains for `steps` steps. Returns the images seen."""
        before, self.batches.steps = self.batches.images, steps
        for images, _ in self.batches:
            images = images.to(self.device)
            latents = self.model.encode(images).latent_dist
            reconstructions = self.model.decode(latents.sample()).sample
            pixels = F.l1_loss(reconstructions, images)
            loss = pixels + 2.08e-8 * latents.kl().mean() / latents.mean[0].numel()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.average.update_parameters(self.model)
            self.last = loss.item()
        return self.batches.images - before
