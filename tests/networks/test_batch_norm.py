"""GroupBatchNorm against torch's BatchNorm on each group alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ray_gen.networks.batch_norm import GroupBatchNorm, with_group_batch_norm

GROUP = 4


def pair(images: bool = True, channels: int = 3) -> tuple[GroupBatchNorm, nn.Module]:
    """Ours and a copy of the plain layer that it was made from, neither at its initial weights."""
    plain = (nn.BatchNorm2d if images else nn.BatchNorm1d)(channels, eps=1e-3, momentum=0.3)
    plain.double()
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand_like(tensor))
    return GroupBatchNorm(copy.deepcopy(plain), GROUP), plain


def batch(images: bool, groups: int = 3) -> Tensor:
    shape = (groups * GROUP, 3, 5, 6) if images else (groups * GROUP, 3)
    return 2 + 3 * torch.randn(shape, dtype=torch.float64)


def phase(ours: GroupBatchNorm, *parts: Tensor) -> list[Tensor]:
    """A phase with these micro-batches on one rank."""
    ours.begin_phase()
    outputs = [ours(part) for part in parts]
    ours.end_phase(ours.phase_statistics())
    return outputs


@pytest.mark.parametrize("collecting", [False, True])
@pytest.mark.parametrize("images", [True, False])
def test_each_group_is_normalised_as_torch_would_alone(images: bool, collecting: bool) -> None:
    ours, plain = pair(images)
    x = batch(images).requires_grad_()
    if collecting:
        ours.begin_phase()
    found = ours(x)
    expected = torch.cat([plain(group) for group in x.split(GROUP)])
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(found)
    ours_gradients = torch.autograd.grad(found, [x, ours.weight, ours.bias], cotangent)
    expected_gradients = torch.autograd.grad(expected, [x, plain.weight, plain.bias], cotangent)
    torch.testing.assert_close(ours_gradients, expected_gradients)


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("splits", [[12], [4, 8], [4, 4, 4]])
def test_statistics_move_once_a_phase_to_the_mean_over_groups(images: bool, splits) -> None:
    ours, _ = pair(images)
    x = batch(images)
    old_mean, old_variance = ours.running_mean.clone(), ours.running_var.clone()
    axes = (0, 2, 3) if images else (0,)
    groups = x.split(GROUP)
    mean = torch.stack([group.mean(axes) for group in groups]).mean(0)
    variance = torch.stack([group.var(axes, unbiased=True) for group in groups]).mean(0)
    phase(ours, *x.split(splits))
    torch.testing.assert_close(ours.running_mean, 0.7 * old_mean + 0.3 * mean)
    torch.testing.assert_close(ours.running_var, 0.7 * old_variance + 0.3 * variance)


def test_with_one_group_statistics_are_torchs() -> None:
    ours, plain = pair()
    for _ in range(3):
        x = batch(True, groups=1)
        phase(ours, x)
        plain(x)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_ranks_with_unequal_shares_give_the_mean_over_all_groups() -> None:
    whole, _ = pair()
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    x = batch(True)
    phase(whole, x)
    for rank, part in ((first, x[:GROUP]), (second, x[GROUP:])):
        rank.begin_phase()
        rank(part)
    total = first.phase_statistics() + second.phase_statistics()
    for rank in (first, second):
        rank.end_phase(total)
        torch.testing.assert_close(rank.running_mean, whole.running_mean)
        torch.testing.assert_close(rank.running_var, whole.running_var)


def test_statistics_are_those_of_the_weights_seen_and_forget_the_last_phase() -> None:
    ours, _ = pair()
    x = batch(True)
    phase(ours, x)
    mean = ours.running_mean.clone()
    phase(ours, x + 10)
    torch.testing.assert_close(ours.running_mean, 0.7 * mean + 0.3 * (x.mean((0, 2, 3)) + 10))


def test_forward_passes_change_no_buffer() -> None:
    """Not outside a phase of its own network, not in one before its end, not when sampling."""
    ours, _ = pair()
    before = copy.deepcopy(ours.state_dict())
    ours(batch(True))
    ours.begin_phase()
    ours(batch(True))
    ours.eval()
    ours(batch(True))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_phase_without_forward_passes_keeps_the_statistics() -> None:
    """The mean over no group is none: neither 0 nor NaN."""
    ours, _ = pair()
    phase(ours, batch(True))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    phase(ours)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())
    assert before["running_var"].ne(1.0).all()


def test_what_is_evaluated_uses_the_running_statistics_and_no_group() -> None:
    ours, plain = pair()
    ours.eval()
    plain.eval()
    x = batch(True)[:5]
    torch.testing.assert_close(ours(x), plain(x))


def test_a_new_phase_forgets_an_earlier_non_finite_batch() -> None:
    ours, _ = pair()
    x = batch(True)
    ours.begin_phase()
    ours(torch.full_like(x, float("nan")))
    ours.begin_phase()
    ours(x)
    ours.end_phase(ours.phase_statistics())
    assert bool(ours.running_mean.isfinite().all())


def test_every_layer_of_a_users_network_is_replaced_in_place() -> None:
    class Users(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))

    network = Users()
    weights = {name: id(parameter) for name, parameter in network.named_parameters()}
    keys = {key for key in network.state_dict() if "num_batches" not in key}
    replaced = with_group_batch_norm(network, 4)
    assert replaced is network
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in replaced.modules())
    assert {name: id(parameter) for name, parameter in replaced.named_parameters()} == weights
    assert set(replaced.state_dict()) == keys
    assert isinstance(with_group_batch_norm(nn.BatchNorm2d(2), 4), GroupBatchNorm)


def test_a_layer_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="without running statistics"):
        with_group_batch_norm(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), 4)


def test_what_is_collected_lies_in_one_place_and_ends_as_zero() -> None:
    """A CUDA graph adds to an address; the replica check compares buffers between phases."""
    norm = GroupBatchNorm(torch.nn.BatchNorm2d(3), 2)
    norm.train()
    addresses = set()
    for _ in range(3):
        norm.begin_phase()
        norm(torch.randn(4, 3, 2, 2))
        statistics = norm.phase_statistics()
        assert statistics is not None
        assert float(statistics[-1]) == 2
        addresses.add(statistics.data_ptr())
        norm.end_phase(statistics)
        assert norm.phase_statistics() is None
    assert len(addresses) == 1
    assert all(not name.endswith("_sums") for name in norm.state_dict())
    assert float(dict(norm.named_buffers())["_sums"].abs().sum()) == 0
