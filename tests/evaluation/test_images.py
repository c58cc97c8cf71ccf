"""Images: quantised as in files, chosen at random, shared between ranks in whole batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.images import EvenlySpread, own_share, show, subset_of
from ray_gen.pixels import quantised
from ray_gen.runs.pictures import to_bytes
from tests.evaluation.helpers import Made, pictures


def test_samples_are_quantised_as_picture_files_are() -> None:
    images = torch.rand(5, 3, 8, 8) * 1.2 - 0.1
    images[0] = 0.5  # a sample without contrast stays without contrast
    assert torch.equal(quantised(images).permute(0, 2, 3, 1), torch.from_numpy(to_bytes(images)))
    assert (quantised(images)[0] == 128).all()


def test_a_subset_is_random_and_the_same_for_the_same_seed() -> None:
    images = Made(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), "d", data="numbers")
    some = subset_of(images, 30, 1, "evaluation.reference_images")
    numbers = some.take(range(30)).flatten().tolist()
    assert len(set(numbers)) == 30 and numbers == sorted(numbers)
    assert numbers != list(range(30)) and max(numbers) > 60
    again, other = (subset_of(images, 30, seed, "") for seed in (1, 2))
    assert again.take(range(30)).flatten().tolist() == numbers
    assert some.digest == again.digest != other.digest != images.digest
    assert some.description == {"data": "numbers", "chosen": "30 of 100 at random, seed 1"}
    assert subset_of(images, 100, 1, "") is images


def test_more_images_than_the_set_has_are_refused() -> None:
    images = Made(pictures(5, 1), data="mnist5k", split="train")
    with pytest.raises(Refused, match=r"evaluation\.reference_images: 6 .* there are 5 .*mnist5k"):
        subset_of(images, 6, 0, "evaluation.reference_images")


@given(count=st.integers(1, 500), batch=st.integers(1, 70), size=st.integers(1, 9))
def test_shares_are_whole_batches_that_cover_all(count: int, batch: int, size: int) -> None:
    shares = [own_share(count, batch, World(rank, size)) for rank in range(size)]
    assert [n for share in shares for n in share] == list(range(count))
    assert all(share.start % batch == 0 or share.start == count for share in shares)


@given(
    count=st.integers(1, 300),
    limit=st.integers(1, 300),
    batch=st.integers(1, 50),
    size=st.integers(1, 5),
)
def test_exactly_one_rank_sees_each_chosen_image(
    count: int, limit: int, batch: int, size: int
) -> None:
    pixels = torch.arange(count).view(-1, 1, 1, 1)
    seen = []
    rows = []
    for rank in range(size):
        own = own_share(count, batch, World(rank, size))
        spread = EvenlySpread(count, limit, own)
        before = len(seen)
        for start in range(own.start, own.stop, batch):
            part = pixels[start : min(start + batch, own.stop)]
            seen += spread.chosen(start, part).flatten().tolist()
        assert len(seen) - before == len(spread.rows)
        rows += list(spread.rows)
    assert rows == list(range(min(count, limit)))
    assert len(set(seen)) == len(seen) == min(count, limit) and seen == sorted(seen)


def test_a_pass_shows_every_image_and_reports_progress() -> None:
    told = []
    images = Made(pictures(10, 1))

    class Counts:
        def see(self, first: int, images: torch.Tensor) -> None:
            told.append((first, len(images)))

    show(images, [Counts()], World(), 4, lambda *news: told.append(news), "real")
    assert told == [(0, 4), (4, 10, "real"), (4, 4), (8, 10, "real"), (8, 2), (10, 10, "real")]
