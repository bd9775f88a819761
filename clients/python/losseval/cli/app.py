"""The commands. What they need is imported when they run: `--help` is to be quick."""

import contextlib
import dataclasses
import importlib
import time
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Exit, Option, Typer

from .. import __version__

if TYPE_CHECKING:
    from ..client import Client

_HINT = "name what to read with --logits, --labels, --ids, --sample-weight"
_OPTIONS: tuple[str, ...] = ("ignore_index", "label_smoothing", "temperature", "z_loss", "class_axis", "input")
_OPTIONS += ("precision", "grad_output", "gradient_dtype", "reduction", "model", "segment", "predicted_at", "monitor")

app = Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
Input = Literal["logits", "log_probabilities", "probabilities"]
Json = Annotated[bool, Option("--json", help="Print one JSON document.")]
Key = Annotated[str | None, Option(envvar="LOSSEVAL_API_KEY", help="Its key, if it wants one.")]
Local = Annotated[bool, Option("--local", help="No server: the service runs in this process.")]
Timeout = Annotated[float, Option(min=0, help="Seconds a request may take, retries included.")]
Url = Annotated[str | None, Option(envvar="LOSSEVAL_URL", help="The service; by default http://127.0.0.1:8000.")]


def _show_version(is_wanted: bool) -> None:  # noqa: FBT001 - typer's way
    if is_wanted:
        print(f"losseval {__version__}")
        raise Exit


@app.callback()
def losseval(*, version: Annotated[bool, Option("--version", callback=_show_version, is_eager=True)] = False) -> None:
    """Evaluates cross-entropy of files with the losseval service.

    Exit codes: 0 done, 1 error, 2 usage, 3 a threshold failed, 4 the service can't be reached, 130 Ctrl-C.
    """


@app.command()
def evaluate(  # noqa: PLR0913 - the API's options
    files: Annotated[list[str], Argument(help=".npz, .npy, .safetensors, .parquet, .csv, .jsonl or - (JSON lines).")],
    *,
    logits: Annotated[str | None, Option(help="Name of the logits, if not logits; or a,b,c: their columns.")] = None,
    labels: Annotated[str | None, Option(help="Name of the labels, if not labels.")] = None,
    ids: Annotated[str | None, Option(help="Name of the ids, if not id; without them rows are numbered.")] = None,
    weight: Annotated[str | None, Option(help="Weights of the classes: 1,1,0.5, or an array's name.")] = None,
    sample_weight: Annotated[str | None, Option(help="Name of the weights of the samples.")] = None,
    ignore_index: Annotated[int | None, Option(help="Labels that count for nothing; by default -100.")] = None,
    label_smoothing: Annotated[float | None, Option(help="0 to 1, what all classes share of the label.")] = None,
    temperature: Annotated[float | None, Option(help="Above 0; the loss is that of logits / temperature.")] = None,
    z_loss: Annotated[float | None, Option(help="Adds this times logsumexp² to each loss.")] = None,
    class_axis: Annotated[int, Option(help="-1: the classes come last.")] = 1,
    input: Annotated[Input, Option(help="What the logits are.")] = "logits",  # noqa: A002 - the API's name
    precision: Annotated[Literal["standard", "high"], Option(help="high: in float64 throughout.")] = "standard",
    reduction: Annotated[Literal["mean", "sum"], Option(help="Of the loss and the gradients.")] = "mean",
    grad_output: Annotated[float | None, Option(help="What the gradients are multiplied with.")] = None,
    gradient_dtype: Annotated[Literal["F32", "F64", "F16"] | None, Option(help="F64 by default for F64 only.")] = None,
    model: Annotated[str | None, Option(help="Whose logits these are: the service's metrics count them.")] = None,
    model_version: Annotated[str | None, Option(help="Its version.")] = None,
    segment: Annotated[str | None, Option(help="The part of the traffic that the samples come from.")] = None,
    predicted_at: Annotated[str | None, Option(help="When it answered: 2026-07-01T12:00:00Z.")] = None,
    monitor: Annotated[bool, Option(help="Whether metrics count the samples.")] = True,
    top_k: Annotated[int, Option(min=0, help="Show as many samples, those with the largest nll.")] = 0,
    per_class: Annotated[bool, Option("--per-class", help="Show each class (of at most 1000).")] = False,
    out: Annotated[str | None, Option(help="Write a row a sample: .parquet, .csv, .jsonl or .npz.")] = None,
    gradients_out: Annotated[str | None, Option(help="Write the gradients: .safetensors.")] = None,
    plot: Annotated[bool, Option("--plot", help="Show a histogram of nll.")] = False,
    plot_file: Annotated[str | None, Option(help="Draw it: .png or .svg.")] = None,
    fail_above: Annotated[float | None, Option(help="Exit with 3 if the loss is above this.")] = None,
    local: Local = False,
    url: Url = None,
    api_key: Key = None,
    timeout: Timeout = 60,
    as_json: Json = False,
) -> None:
    """Evaluates the rows of files, of any size; several files follow one another, .npy files lie side by side.

    Ignored samples are in no table. For finding wrong labels the logits must come from a model that never saw them.
    """
    asked = locals()
    from . import CommandError, report
    from . import files as io
    from .evaluation import evaluate_rows

    outputs = io.Outputs({"--out": out, "--gradients-out": gradients_out, "--plot-file": plot_file})
    outputs.check_inputs([*files, weight or ""])
    io.check_ending("--out", out, ".parquet", ".csv", ".jsonl", ".npz")
    io.check_ending("--gradients-out", gradients_out, ".safetensors")
    io.check_ending("--plot-file", plot_file, ".png", ".svg")
    if plot_file:
        importlib.import_module("matplotlib")  # better missed now than in the end
    names = {"logits": logits, "labels": labels, "id": ids}
    names |= {"sample_weight": sample_weight} if sample_weight else {}
    sources = [(source, source.choose(names, _HINT)) for source in io.open_sources(files)]
    options = {name: asked[name] for name in _OPTIONS} | {"version": model_version}
    options["weight"] = weight and io.read_weight(sources[0][0], weight)
    per_sample = ["nll", "predictions", "margin"] if out or top_k or plot or plot_file else []
    options["include"] = ["loss", "summary", *per_sample, *(["gradients"] if gradients_out else [])]
    if gradient_dtype == "F16":  # whose sums may be beyond 16 bits where their mean is not
        options["gradient_dtype"] = "F32"
    with outputs:
        with _connect(url, api_key, timeout, is_local=local) as client, report.progress_bar() as show:
            client.ready()  # in bulk a client is patient, with a server that isn't there too
            gradients = io.Gradients(outputs.files[gradients_out]) if gradients_out else None
            result, error = evaluate_rows(client, sources, options, gradients=gradients, show=show)
        table = io.tabulate(result) if per_sample else {}
        try:
            if gradients:
                divisor = result.normalizer or 1 if reduction == "mean" else 1
                gradients.close(divisor, "f2" if gradient_dtype == "F16" else None)
            if out:
                io.write_table(outputs.files[out], out, table)
            if plot_file:
                report.draw_histogram(table["nll"], outputs.files[plot_file], plot_file[-3:])
            outputs.keep()
        finally:  # a full disk is not to cost the numbers, nor a closed pipe the files
            worst = io.tabulate(result, top_k) if top_k else {}
            report.show_result(result, worst, has_classes=per_class, as_json=as_json, is_complete=not error)
    if plot and not as_json:
        report.show_histogram(table["nll"])
    if error:
        raise error
    if fail_above is not None and not result.loss <= fail_above:
        raise CommandError(f"the loss is {result.loss:.6g}, above {fail_above}", 3)


@app.command()
def compare(
    a: Annotated[str, Argument(help="A result file, as `losseval evaluate --out` writes it.")],
    b: Annotated[str, Argument(help="Another.")],
    *,
    fail_if_worse: Annotated[bool, Option("--fail-if-worse", help="Exit with 3 if the interval is above 0.")] = False,
    as_json: Json = False,
) -> None:
    """Compares B with A: sample by sample if both are of the same samples, else mean with mean."""
    from . import CommandError, report
    from .evaluation import compare_results, read_result

    comparison, verdict, why = compare_results(read_result(a), read_result(b))
    low, high = comparison.interval
    numbers = {"b_is": verdict, "why": why, **dataclasses.asdict(comparison)}
    numbers |= {"interval_low": low, "interval_high": high}
    if as_json:
        report.show_json(numbers)
    else:
        regressions = numbers.pop("regressions")
        report.show_pairs(numbers)
        if regressions:
            is_larger = regressions["b"] > regressions["a"]
            report.show_table({name: one[is_larger] for name, one in regressions.items()}, "Largest increases")
    if fail_if_worse and verdict == "worse":
        raise CommandError(f"{b} is worse than {a}", 3)


@app.command()
def info(  # noqa: PLR0913 - as above
    *,
    wait: Annotated[float, Option(help="Seconds to wait until the service is ready.")] = 0,
    local: Local = False,
    url: Url = None,
    api_key: Key = None,
    timeout: Timeout = 60,
    as_json: Json = False,
) -> None:
    """Tells whether the service is ready, how far away it is, on what device it computes, and its limits."""
    from . import CommandError, report

    with _connect(url, api_key, timeout, is_local=local) as client:
        _wait(client, wait)
        is_ready, start = client.ready(), time.perf_counter()
        about = client.info() | {"round_trip_ms": (time.perf_counter() - start) * 1000, "ready": is_ready}
    if as_json:
        report.show_json(about)
    else:
        report.show_pairs({name: value for name, value in about.items() if not isinstance(value, dict | list)})
        report.show_pairs(about["limits"])
    if not is_ready:
        raise CommandError("the service is not ready; --wait 30 waits for it", 4)


def _connect(url: str | None, api_key: str | None, timeout: float, *, is_local: bool) -> "Client":
    from ..client import Client

    return Client.local().with_options(timeout=timeout) if is_local else Client(url, api_key=api_key, timeout=timeout)


def _wait(client: "Client", seconds: float) -> None:
    """Waits until the service is ready, no longer than said."""
    from ..errors import APIConnectionError

    probe, deadline = client.with_options(timeout=2, max_attempts=1), time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(APIConnectionError):
            if probe.ready():
                return
        time.sleep(0.2)
