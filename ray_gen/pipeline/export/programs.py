"""Generator, decoder and encoder as programs that need no ray_gen: torch.export and ONNX.

A program is traced from a float32 copy of the networks on the CPU. Parametrised weights (spectral
norm) become plain weights: the copy has W / σ(W) as its weight. Both files of a program are read
back and compared with the original, at several batch sizes.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ray_gen.bottlenecks.quantiser import Quantiser
from ray_gen.core import Encodes, Networks, Noise, Objective, declared, posteriors_of
from ray_gen.errors import Failed, Refused
from ray_gen.experiment.data import Condition
from ray_gen.noise import drawn, key_of
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.truncation import truncated
from ray_gen.training.labels import labels_in_turn

BATCH_SIZES = (1, 2, 5, 16)
"""Batch sizes of the checks. Tracing uses 2 images."""

LABELS = "labels"
CONDITIONS = "conditions"

TOLERANCE = 1e-4
"""Largest allowed |difference| to the original, in units of max(1, its largest |output|). One grey
level is 40 times this. Measured: at most 2.4e-6 for three trained runs (onnxruntime 1.32, float32
sums in another order), 2.2e-5 for networks with weights four times too large."""


class LabelsOf(nn.Module):
    """Classes int64 (N,) and conditions float32 (N, K), in the data's own units, to the labels that
    networks get. Takes both out of the named inputs of a program."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, statistics: Sequence[Condition]) -> None:
        super().__init__()
        for name in ("mean", "deviation") if statistics else ():
            values = [getattr(one, name) for one in statistics]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)

    def forward(self, named: dict[str, Tensor]) -> Tensor | None:
        """None without classes and conditions."""
        classes, conditions = named.pop(LABELS, None), named.pop(CONDITIONS, None)
        if conditions is None:
            return classes
        numbers = ((conditions.double() - self.mean) / self.deviation).float()
        return numbers if classes is None else torch.cat([classes.float()[:, None], numbers], dim=1)


class Decode(nn.Module):
    """Latents (N, *shape), [labels int64 (N,)], [conditions float32 (N, K)] and the noise of the
    networks, in this order, to images (N, C, H, W) in [0, 1], float32."""

    def __init__(
        self,
        objective: Objective,
        networks: Networks,
        dtype: torch.dtype,
        inputs: Sequence[str],
        statistics: Sequence[Condition],
    ) -> None:
        super().__init__()
        self.networks = networks
        self._sample = objective.sample
        self._dtype = dtype
        self._inputs = tuple(inputs)
        self.labels = LabelsOf(statistics)
        self._latents = tuple(objective.latents)

    def forward(self, *given: Tensor) -> Tensor:
        """E[x|z] or G(z)."""
        named = dict(zip(self._inputs, given, strict=True))
        labels = self.labels(named)
        floats = {name: value.to(self._dtype) for name, value in named.items()}
        latents = {name: floats.pop(name) for name in self._latents}
        return self._sample(self.networks, latents, labels, floats).float()


class Encode(nn.Module):
    """images (N, C, H, W) in [0, 1] [, labels int64 (N,)] [and conditions float32 (N, K)] to the
    mean and log-variance of each latent's q(z|x), (N, *shape) each, float32. For a plain
    autoencoder only to z."""

    def __init__(
        self,
        objective: Objective,
        networks: Networks,
        dtype: torch.dtype,
        inputs: Sequence[str],
        statistics: Sequence[Condition],
    ) -> None:
        super().__init__()
        assert isinstance(objective, Encodes)
        self.networks = networks
        self.labels = LabelsOf(statistics)
        self._objective = objective
        self._low, self._high = objective.image_range
        self._dtype = dtype
        self._inputs = tuple(inputs)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scales the images to the objective's `image_range` first."""
        seen = given[0].to(self._dtype)
        if (self._low, self._high) != (0.0, 1.0):
            seen = seen * (self._high - self._low) + self._low
        labels = self.labels(dict(zip(self._inputs[1:], given[1:], strict=True)))
        posteriors = posteriors_of(self._objective, self.networks, seen, labels).values()
        found = [part.float() for of_one in posteriors for part in of_one if part is not None]
        return found[0] if len(found) == 1 else tuple(found)


@dataclass(frozen=True)
class ModelProgram:
    """One program, with test inputs and the original's outputs for them."""

    name: str
    """generator, decoder or encoder. Its files are NAME.pt2 and NAME.onnx."""
    module: nn.Module
    """Decode or Encode with the networks that it needs, from the float32 copy."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    probes: tuple[tuple[Tensor, ...], ...]
    """Inputs, one tuple for each of BATCH_SIZES, on the CPU."""
    expected: tuple[tuple[Tensor, ...], ...]
    """The original's outputs for each probe."""

    @property
    def chooses(self) -> bool:
        """Whether it chooses codes from a finite set."""
        return any(isinstance(module, Quantiser) for module in self.module.modules())


_Maker = Callable[[Objective, Networks, torch.dtype, Sequence[str], Sequence[Condition]], nn.Module]


def programs_of(
    pipeline: Model, truncation: float | None = None
) -> tuple[list[ModelProgram], list[str]]:
    """The programs of a model, and a sentence for each missing program. truncation: the ψ of the
    styles that they contain.

    Does not change the pipeline's networks. They may be on any device.
    """
    objective = pipeline.objective
    programs: list[ModelProgram] = []
    missing: list[str] = []
    decodes = isinstance(objective, Encodes) or "decoder" in objective.sampled_from
    name = "decoder" if decodes else "generator"
    try:
        pipeline.latent_shapes  # noqa: B018
    except Refused as refused:
        missing.append(f"{name}: not written, {refused}")
    else:
        own = declared(objective.sampling_noise, pipeline.networks)
        inputs = _Inputs(objective.latents, own)
        programs.append(_program(name, Decode, inputs, ("images",), pipeline, truncation))
    if isinstance(objective, Encodes):
        pixels = _Inputs({"images": Noise(pipeline.experiment.picture_shape, "uniform")}, {})
        programs.append(_program("encoder", Encode, pixels, None, pipeline))
    elif "encoder" in objective.sampled_from:
        missing.append("encoder: not written, the objective has no `encode` (ray_gen.core.Encodes)")
    return programs, missing


@dataclass(frozen=True)
class _Inputs:
    """Inputs of a program without labels. The order is main, labels, conditions, noise."""

    main: Mapping[str, Noise]
    noise: Mapping[str, Noise]


def _program(
    name: str,
    make: _Maker,
    of: _Inputs,
    outputs: Sequence[str] | None,
    pipeline: Model,
    truncation: float | None = None,
) -> ModelProgram:
    experiment, objective, networks = pipeline.experiment, pipeline.objective, _used(pipeline)
    if truncation is not None:
        networks = truncated(networks, truncation)
    classes = experiment.label_count
    statistics = (experiment.data.condition_statistics or ()) if experiment.label_numbers else ()
    of_labels = (*((LABELS,) if classes else ()), *((CONDITIONS,) if statistics else ()))
    inputs = (*of.main, *of_labels, *of.noise)
    dtype = next(iter(networks.parameters())).dtype
    original = make(objective, networks, dtype, inputs, statistics)
    probes: list[tuple[Tensor, ...]] = []
    for count in BATCH_SIZES:
        numbers = torch.arange(count)
        drawn_for = drawn(
            {**of.main, **of.noise},
            lambda key: key_of(experiment.seed, "export", key),
            numbers,
            torch.float32,
        )
        if classes:
            drawn_for[LABELS] = (numbers + count) % classes
        if statistics and (spread := labels_in_turn(experiment, numbers + count)) is not None:
            of_each = spread[:, -len(statistics) :].double()
            scale = torch.tensor([[one.mean, one.deviation] for one in statistics]).double()
            drawn_for[CONDITIONS] = (scale[:, 0] + of_each * scale[:, 1]).float()
        probes.append(tuple(drawn_for[key] for key in inputs))
    expected = tuple(_run(original, probe) for probe in probes)
    needed = _needed(make, objective, baked(networks).float(), probes[1], inputs, statistics)
    return ModelProgram(
        name=name,
        module=make(objective, needed, torch.float32, inputs, statistics).eval(),
        inputs=tuple(key.replace(".", "_") for key in inputs),
        outputs=tuple(_encoder_outputs(pipeline) if outputs is None else outputs),
        probes=tuple(probes),
        expected=expected,
    )


@torch.no_grad()
def _encoder_outputs(pipeline: Model) -> list[str]:
    """Names of the outputs: mean and log_variance, or z. With several latents each begins with its
    latent's name."""
    objective = pipeline.encoder()
    image = torch.zeros(1, *pipeline.experiment.image_shape).to(
        next(pipeline.networks.parameters())
    )
    labels = labels_in_turn(pipeline.experiment, torch.zeros(1).long().to(image.device))
    found = posteriors_of(objective, pipeline.networks, image, labels)
    names: list[str] = []
    for name, (_, log_variance) in found.items():
        parts = ["mean", "log_variance"] if log_variance is not None else [name]
        several = len(found) > 1 and log_variance is not None
        names += [f"{name}_{part}" if several else part for part in parts]
    return names


def _used(pipeline: Model) -> Networks:
    """Only the networks that are used after training, on the CPU: by default a GPU's convolutions
    round to 10 bits (TF32)."""
    names = pipeline.objective.sampled_from
    networks = nn.ModuleDict({name: pipeline.networks[name] for name in names})
    return networks if pipeline.device.type == "cpu" else copy.deepcopy(networks).cpu()


@torch.no_grad()
def _run(
    of: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The outputs of a module, as a tuple."""
    out = of(*inputs)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def baked(networks: Networks) -> Networks:
    """A copy with plain tensors instead of parametrised ones, of the same values.

    Does not use `remove_parametrizations`: it deletes the tensor from a class, and the copy and the
    original share this class.
    """
    copied = copy.deepcopy(networks).eval().requires_grad_(False)
    for layer in list(copied.modules()):
        if parametrize.is_parametrized(layer):
            assert isinstance(layer.parametrizations, nn.ModuleDict)
            with torch.no_grad():
                values = {name: getattr(layer, name).detach() for name in layer.parametrizations}
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            for name, value in values.items():
                layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return copied


def _needed(
    make: _Maker,
    objective: Objective,
    networks: Networks,
    probe: tuple[Tensor, ...],
    inputs: Sequence[str],
    statistics: Sequence[Condition],
) -> Networks:
    """The networks that the outputs depend on: a decoder's file has no encoder in it."""
    expected = _run(make(objective, networks, torch.float32, inputs, statistics), probe)
    kept = dict(networks.items())
    for name in list(kept):
        fewer = {other: network for other, network in kept.items() if other != name}
        try:
            part = make(objective, nn.ModuleDict(fewer), torch.float32, inputs, statistics)
            found = _run(part, probe)
        except (KeyError, AttributeError):
            continue
        if all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
            kept = fewer
    return nn.ModuleDict(kept)


def traced(program: ModelProgram) -> torch.export.ExportedProgram:
    """The program, traced for any number of images. Removes the example inputs and the paths of the
    traced source files."""
    batch = torch.export.Dim("batch")
    with _quiet(program.name, "torch.export cannot trace it"):
        exported = torch.export.export(
            program.module,
            program.probes[1],
            dynamic_shapes=(tuple({0: batch} for _ in program.inputs),),  # for `*given`
        )
    exported.example_inputs = None  # they would be a pickle in the file
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    return exported


def write_torch(exported: torch.export.ExportedProgram, program: ModelProgram, path: Path) -> float:
    """Write a .pt2, read it back and run it. Returns the largest difference. Raises Failed."""
    with _quiet(path.name, "torch.export cannot write it"):
        torch.export.save(exported, path)
        # `load` can unpickle a file. Here it gets only the file that the line above wrote.
        loaded = torch.export.load(path).module()
    found = [_run(loaded, probe) for probe in program.probes]
    return check(path.name, program.expected, found, chooses=program.chooses)


def missing_for_onnx() -> list[str]:
    """Missing packages for writing ONNX."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def write_onnx(
    exported: torch.export.ExportedProgram, program: ModelProgram, path: Path
) -> float | None:
    """Write a .onnx, read it back and run it. Returns the largest difference, or None if
    onnxruntime is not installed. Raises Failed."""
    import onnx

    with _quiet(path.name, "ONNX cannot express it"):
        made = torch.onnx.export(
            exported,
            dynamo=True,
            dynamic_shapes={name: {0: "batch"} for name in program.inputs},
            input_names=program.inputs,
            output_names=program.outputs,
            verbose=False,
        )
        assert made is not None
        model = made.model_proto
        for node in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
            node.ClearField("metadata_props")  # records of the tracing, as large as the graph
        onnx.save(model, path)
        onnx.checker.check_model(path, full_check=True)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    with _quiet(path.name, "onnxruntime cannot run it"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found: list[tuple[Tensor, ...]] = []
        for probe in program.probes:
            named = zip(program.inputs, probe, strict=True)
            given = {name: tensor.numpy() for name, tensor in named}
            outputs = session.run(list(program.outputs), given)
            found.append(tuple(torch.from_numpy(output) for output in outputs))
    return check(path.name, program.expected, found, chooses=program.chooses)


def check(
    file: str,
    expected: Sequence[Sequence[Tensor]],
    found: Sequence[Sequence[Tensor]],
    *,
    chooses: bool = False,
) -> float:
    """The largest |difference| over all outputs of all probes. Raises Failed above TOLERANCE.

    chooses: the median over images of the largest |difference| of an image. Between two codes that
    are equally near, rounding decides, and few images of the probes have such a pair.
    """
    largest, of_all = 0.0, list[Tensor]()
    for here, there in zip(expected, found, strict=True):
        for ours, theirs in zip(here, there, strict=True):
            if ours.shape != theirs.shape:
                raise Failed(
                    f"{file}: gives {tuple(theirs.shape)} where the original gives "
                    f"{tuple(ours.shape)}; nothing was written"
                )
            of_images = (ours - theirs).abs().reshape(len(ours), -1).amax(1)
            scale = max(1.0, float(ours.abs().max()))
            if chooses:
                of_all.append(of_images / scale)
            else:
                largest = max(largest, _judged(file, of_images.max(), scale, len(ours)))
    if not of_all:
        return largest
    whole = torch.cat(of_all)
    return _judged(file, whole.median(), 1.0, len(whole))


def _judged(file: str, difference: Tensor, scale: float, count: int) -> float:
    """The difference. Raises Failed if it is too large."""
    if not difference <= TOLERANCE * scale:  # NaN fails too
        raise Failed(
            f"{file}: differs from the original by {float(difference):.2g} with {count} images, "
            f"and {TOLERANCE * scale:.2g} is allowed; nothing was written"
        )
    return float(difference)


@contextmanager
def _quiet(file: str, problem: str) -> Generator[None]:
    """Hide the exporters' warnings. Turn their exceptions into Failed with a readable message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            if "Constraints violated" in reason:
                reason = "a network fixes the number of images; replace len(x) by x.shape[0] in it"
            raise Failed(
                f"{file}: {problem} ({reason}); nothing was written: leave this format out with "
                "--formats"
            ) from error
