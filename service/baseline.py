"""`python -m service baseline`: what a model's losses are on data for which it is known to be good."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import yaml

from .api.schemas import SCALAR_FIELDS, parse_options
from .engine.device import TorchDevice
from .errors import ServiceError
from .loss.samples import Pool, Samples, pieces
from .loss.validation import SizeLimits, validate
from .telemetry.models import parse
from .wire import json_body, safetensors_body

_ANY_SIZE = SizeLimits(max_classes=sys.maxsize, max_elements=sys.maxsize)


def main(arguments: Sequence[str]) -> None:
    """Prints a MODELS_FILE with one entry; a bad file or value ends the process with status 2."""
    options = _parser().parse_args(arguments)
    device = TorchDevice("cpu", threads=1)
    samples: list[Samples] = []
    classes: set[int] = set()
    for path in options.files:
        try:
            count, found = _read(path, device, options.temperature)
        except OSError as error:
            _fail(f"{path}: {error.strerror}")
        except ServiceError as error:
            _fail(f"{path}: {error}")
        sys.stderr.write(f"{path}: {sum(one.nll.size for one in found)} samples of {count} classes\n")
        samples += found
        classes.add(count)
    if len(classes) > 1:
        _fail(f"the files differ in their number of classes: {', '.join(map(str, sorted(classes)))}")
    entry = {
        "model": options.model,
        "versions": options.version,
        "classes": classes.pop(),
        "temperature": options.temperature if options.temperature != 1 else None,
        "baseline": _baseline(samples),
        "label_interval": options.label_interval,
    }
    text = yaml.safe_dump({"models": [{name: value for name, value in entry.items() if value}]}, sort_keys=False)
    try:
        parse(text.encode())
    except ValueError as error:
        _fail(str(error))
    sys.stdout.write(text)


def _baseline(samples: Sequence[Samples]) -> dict[str, float]:
    nll = np.concatenate([np.zeros(0), *(one.nll for one in samples)])
    finite = nll[np.isfinite(nll)]
    if finite.size < nll.size:
        sys.stderr.write(f"{nll.size - finite.size} samples have no finite loss and were left out of it\n")
    if finite.size < 2 or not finite.std():  # noqa: PLR2004 - of one, there is no deviation
        _fail("at least two samples with different, finite losses are needed")
    accuracy = np.concatenate([one.is_correct for one in samples]).mean()
    figures = {"mean": finite.mean(), "stddev": finite.std(ddof=1), "accuracy": accuracy}
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def _read(path: Path, device: TorchDevice, temperature: float) -> tuple[int, list[Samples]]:
    """Returns the classes and the samples, ignored ones left out, of a file that could be the body of a request."""
    body = path.read_bytes()
    if path.suffix == ".json":
        arrays, scalars = json_body.decode(body, SCALAR_FIELDS)
        options = parse_options({name: value for name, value in scalars.items() if name in _READ})[0]
    else:
        arrays, options = safetensors_body.decode(body), parse_options({})[0]
    evaluation = validate(arrays, options, _ANY_SIZE)
    pool = Pool(options.input)
    pool.add(evaluation)
    samples = []
    for _, piece in pieces(pool.evaluation(temperature=temperature)):
        found = Samples.of(piece, device.compute([piece]).rows)
        samples.append(found[~found.is_ignored])
    return evaluation.classes, samples


_READ = frozenset({"input", "ignore_index", "class_axis"})
"""What an option can change about which samples there are and what they are; the loss is always the plain one."""


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"losseval: {message}\n")
    sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m service baseline",
        description="Prints an entry of MODELS_FILE from logits and labels for which the model is known to be good: "
        "safetensors files with the tensors logits and labels, or JSON files as one would post them.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".safetensors or .json")
    parser.add_argument("--model", required=True, help="the name requests will give")
    parser.add_argument("--version", action="append", help="a version, several times for several")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits (default: 1)")
    parser.add_argument("--label-interval", help="time between bursts of labels: 30s, 15m, 6h, 1d, 1w")
    return parser
