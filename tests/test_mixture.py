"""A prior that is fitted after training finds the density, and its draws are a pure function."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pipeline.mixture import Mixture
from ray_gen.pipeline.origin import Origin

MEANS = torch.tensor([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0]])


@pytest.fixture(scope="module")
def data() -> Tensor:
    """Three heaps, of 50, 100 and 150, the second one stretched."""
    generator = torch.Generator().manual_seed(0)
    heaps = [
        mean + torch.randn(count, 2, generator=generator) * torch.tensor(scale)
        for mean, count, scale in zip(
            MEANS, (50, 100, 150), ([1.0, 1.0], [0.3, 2.0], [1.0, 0.5]), strict=True
        )
    ]
    return torch.cat(heaps)


@pytest.fixture(scope="module")
def mixture(data: Tensor) -> Mixture:
    return Mixture.fit(data, components=3)


def test_a_fit_finds_the_heaps(mixture: Mixture) -> None:
    order = mixture.means[:, 0].argsort()
    torch.testing.assert_close(mixture.means[order].float(), MEANS, rtol=0, atol=0.5)
    expected = torch.tensor([50, 100, 150]).double() / 300
    torch.testing.assert_close(mixture.weights[order], expected, rtol=0, atol=0.02)
    stretched = mixture.cholesky[order[1]] @ mixture.cholesky[order[1]].T
    assert 2.5 < float(stretched[1, 1]) < 6.0
    assert float(stretched[0, 0]) < 0.2


def test_draws_have_the_density_of_the_mixture(mixture: Mixture) -> None:
    z = mixture.draw(3, torch.arange(20_000)).double()
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.15)
    nearest = torch.cdist(z, mixture.means).argmin(1).bincount() / len(z)
    torch.testing.assert_close(nearest.double(), mixture.weights, rtol=0, atol=0.02)
    first = z[torch.cdist(z, mixture.means).argmin(1) == 0]
    covariance = mixture.cholesky[0] @ mixture.cholesky[0].T
    torch.testing.assert_close(first.T.cov(), covariance, rtol=0.15, atol=0.05)


def test_a_draw_is_a_function_of_seed_and_number_alone(mixture: Mixture) -> None:
    many = mixture.draw(5, torch.arange(100))
    assert torch.equal(mixture.draw(5, torch.tensor([99, 7])), many[[99, 7]])
    assert not torch.equal(mixture.draw(6, torch.arange(100)), many)


def test_truncation_draws_towards_the_means(mixture: Mixture) -> None:
    numbers = torch.arange(200)
    free, near = mixture.draw(0, numbers), mixture.draw(0, numbers, truncation=0.01)
    assert torch.cdist(near.double(), mixture.means).min(1).values.max() < 0.05
    torch.testing.assert_close(mixture.draw(0, numbers, truncation=20.0), free)


def test_equal_fits_are_equal_and_a_saved_one_is_the_same(
    data: Tensor, mixture: Mixture, tmp_path: Path
) -> None:
    again = Mixture.fit(data, components=3)
    mixture.save(tmp_path / "new" / "m.safetensors")
    loaded = Mixture.load(tmp_path / "new" / "m.safetensors")
    for other in (again, loaded):
        for name in ("weights", "means", "cholesky"):
            assert torch.equal(getattr(other, name), getattr(mixture, name))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_latents_are_taken_whole_in_parts_and_from_numpy(data: Tensor, mixture: Mixture) -> None:
    for latents in (data.numpy(), iter(data.split(70)), [part.numpy() for part in data.split(70)]):
        assert torch.equal(Mixture.fit(latents, components=3).means, mixture.means)


def test_a_mixture_knows_whose_encodings_it_was_fitted_to(
    data: Tensor, mixture: Mixture, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    Mixture.fit(data, 3, origin=Origin("mine", "abc")).save(path)
    loaded = Mixture.load(path)
    assert loaded.origin == Origin("mine", "abc")
    loaded.check_origin(Origin("mine", "abc"))
    loaded.check_origin(Origin("exported", "abc"))  # the same weights
    with pytest.raises(Refused, match=r"prior: .* mine, .* yours"):
        loaded.check_origin(Origin("yours", "def"))
    with pytest.raises(Refused, match=r"other weights of mine .*checkpoint"):
        loaded.check_origin(Origin("mine", "def"))
    mixture.save(path)  # fitted to anything
    assert Mixture.load(path).origin is None
    Mixture.load(path).check_origin(Origin("yours", "def"))


def test_a_saved_mixture_is_for_others_to_read_and_leaves_nothing_if_it_cannot_be_saved(
    mixture: Mixture, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        mixture.save(tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o644
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", Path("/proc/m.safetensors")):
        with pytest.raises(OSError, match=r"directory"):
            replace(mixture).save(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "m.safetensors"]


def test_what_cannot_be_fitted_is_refused(data: Tensor, monkeypatch) -> None:
    with pytest.raises(Refused, match="components: 3 cannot be fitted to 0"):
        Mixture.fit([], 3)
    for components in (0, 301):
        with pytest.raises(Refused, match=f"^components: {components} .* 300"):
            Mixture.fit(data, components)
    with pytest.raises(Refused, match=r"components: 3 cannot be fitted: .*NaN"):
        Mixture.fit(data * torch.nan, 3)
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(Refused, match="pip install scikit-learn"):
        Mixture.fit(data, 3)


def test_a_file_that_is_no_mixture_is_refused_with_its_path(
    mixture: Mixture, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(Refused, match=f"{path}: there is no such file"):
        Mixture.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(Refused, match=f"^{path}: "):
        Mixture.load(path)
    save_file({"means": torch.zeros(1, 1)}, path)
    with pytest.raises(Refused, match=f"{path}: is not a mixture"):
        Mixture.load(path)
    for name, wrong in (
        ("weights", torch.ones(2)),
        ("means", mixture.means * torch.nan),
        ("means", torch.ones(2)),
    ):
        tensors = {n: getattr(mixture, n).contiguous() for n in ("weights", "means", "cholesky")}
        save_file({**tensors, name: wrong}, path, metadata={"format": "ray_gen mixture 1"})
        with pytest.raises(Refused, match=f"{path}: is damaged in '{name}'"):
            Mixture.load(path)
