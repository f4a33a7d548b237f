"""The command line: ``hilander train | cluster | tune | cut | graph | evaluate | config | demo``.

Results go to stdout, log lines and progress to stderr. Exit codes: 0 success, 2 a mistake that the user can mend (one
line says which), 1 anything else. Options come from defaults, then ``--config``, then ``--set``, then flags.
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hilander_dist import __version__
from hilander_dist.config import Config, config_schema, config_yaml, load_config
from hilander_dist.errors import HilanderError, redact
from hilander_dist.monitor.log import configure_log

app = typer.Typer(
    help="Hierarchical clustering of image embeddings with Hi-LANDER on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Inputs = Annotated[
    list[str],
    typer.Option("--input", help="Parquet file, directory or quoted glob, or .npy; local or s3://; repeatable"),
]
PATHS = ("--input", "--labels", "--assignments")
"""Options behind which a shell may put many files, where it meets an unquoted glob."""

Output = Annotated[str, typer.Option("--output", help="directory for the result; local or s3://")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="checkpoint, the directory of `hilander train`, or .pth; default: the general one"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with options")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="set an option; repeatable")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster; default RAY_ADDRESS, else a local Ray")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks and the workers' log")]
Neighbours = Annotated[int | None, typer.Option("--k", help="neighbours per node, itself included")]
Recall = Annotated[float | None, typer.Option("--target-recall", help="recall of the k-NN graph")]
Seed = Annotated[int | None, typer.Option("--seed", help="seed of everything random")]
Restart = Annotated[bool, typer.Option("--restart", help="discard the run in the output directory and start anew")]
Shards = Annotated[int | None, typer.Option("--num-shards", help="shards of level 0; the result does not depend on it")]


@app.command()
def train(
    input_uris: Annotated[
        list[str], typer.Option("--input", help="as of `cluster`, with labels; repeatable unless model.features=raw")
    ],
    output_uri: Output,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="passes over the training data")] = None,
    num_workers: Annotated[int | None, typer.Option("--num-workers", help="DDP workers")] = None,
    seed: Seed = None,
    num_shards: Shards = None,
    restart: Restart = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Meta-train LANDER on labelled embeddings; writes model.safetensors in the output directory."""
    with _reported(debug):
        flags = {"train.epochs": epochs, "train.num_workers": num_workers, "seed": seed, "num_shards": num_shards}
        config = load_config(config_file, overrides or (), flags)
        _check_locations(input_uris, output_uri)
        from hilander_dist.jobs.train import run_train_job

        run_train_job(input_uris, output_uri, config, address, debug, restart)


@app.command()
def cluster(
    input_uris: Inputs,
    output_uri: Output,
    model_uri: Model = None,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    k: Neighbours = None,
    tau: Annotated[float | None, typer.Option("--tau", help="raw model: a link needs a probability above this")] = None,
    max_levels: Annotated[int | None, typer.Option("--max-levels", help="levels after which to stop")] = None,
    target_recall: Recall = None,
    seed: Seed = None,
    num_shards: Shards = None,
    restart: Restart = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Cluster embeddings into a hierarchy; writes assignments/, clusters/ and manifest.json in the output directory."""
    with _reported(debug):
        flags = {
            "k": k,
            "tau": tau,
            "max_levels": max_levels,
            "target_recall": target_recall,
            "seed": seed,
            "num_shards": num_shards,
        }
        config = load_config(config_file, overrides or (), flags)
        _check_locations(input_uris, output_uri, model_uri)
        from hilander_dist.jobs.cluster import run_cluster_job

        run_cluster_job(input_uris, model_uri, output_uri, config, address, debug, restart)


@app.command()
def tune(
    input_uris: Inputs,
    labels_uri: Annotated[
        str, typer.Option("--labels", help="Parquet with the columns of ids and labels, of some items")
    ],
    output_uri: Output,
    model_uri: Model = None,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    k: Neighbours = None,
    seed: Seed = None,
    num_shards: Shards = None,
    restart: Restart = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Choose the level by a few hundred labelled items; writes model.safetensors and the F to expect (metrics.json)."""
    with _reported(debug):
        config = load_config(config_file, overrides or (), {"k": k, "seed": seed, "num_shards": num_shards})
        _check_locations(input_uris, output_uri, model_uri)
        from hilander_dist.storage import check_reachable

        check_reachable(labels_uri)
        from hilander_dist.jobs.tune import run_tune_job

        tuning = run_tune_job(input_uris, labels_uri, model_uri, output_uri, config, address, debug, restart)["tuning"]
        typer.echo(
            f"shift {tuning['shift']}: expect a pairwise F of {tuning['expected_pairwise_f']} and a BCubed F of"
            f" {tuning['expected_bcubed_f']} ({tuning['labelled']} items of {tuning['classes']} classes)"
        )


@app.command()
def cut(
    run_uri: Annotated[str, typer.Option("--run", help="output directory of `hilander cluster`")],
    output_uri: Output,
    level: Annotated[int | None, typer.Option("--level", help="a level of the run")] = None,
    clusters: Annotated[int | None, typer.Option("--clusters", help="so many clusters")] = None,
    shift: Annotated[float | None, typer.Option("--shift", help="the level with the nearest shift")] = None,
    restart: Restart = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Cut a finished run at another level, or into so many clusters; writes assignments/ and clusters/ anew."""
    with _reported(debug):
        from hilander_dist.storage import check_reachable

        check_reachable(run_uri)
        from hilander_dist.jobs.cut import run_cut_job

        run_cut_job(run_uri, output_uri, level, clusters, shift, address, debug, restart)


@app.command()
def graph(
    input_uris: Inputs,
    output_uri: Output,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    k: Neighbours = None,
    target_recall: Recall = None,
    seed: Seed = None,
    num_shards: Shards = None,
    restart: Restart = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Build the k-NN graph alone; writes graph/*.parquet (id, neighbor_ids, similarities) in the output directory."""
    with _reported(debug):
        flags = {"k": k, "target_recall": target_recall, "seed": seed, "num_shards": num_shards}
        config = load_config(config_file, overrides or (), flags)
        _check_locations(input_uris, output_uri)
        from hilander_dist.jobs.graph import run_graph_job

        run_graph_job(input_uris, output_uri, config, address, debug, restart)


@app.command()
def evaluate(
    assignments_uri: Annotated[str, typer.Option("--assignments", help="output directory of `cluster`, or its files")],
    labels_uri: Annotated[str, typer.Option("--labels", help="Parquet with the columns of ids and labels")],
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    debug: Debug = False,
) -> None:
    """Score clusters against labels: pairwise, BCubed and NMI, final and per level."""
    with _reported(debug):
        config = load_config(config_file, overrides or ())
        from hilander_dist.storage import check_reachable

        check_reachable(assignments_uri)
        check_reachable(labels_uri)
        from hilander_dist.evaluate import format_scores
        from hilander_dist.jobs.evaluate import evaluate_uris

        result = evaluate_uris(assignments_uri, labels_uri, config.input)
        typer.echo(json.dumps(result) if as_json else format_scores(result))


@app.command("config")
def show_config(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of all options instead")] = False,
    debug: Debug = False,
) -> None:
    """Print the effective configuration as YAML."""
    with _reported(debug):
        config: Config = load_config(config_file, overrides or ())
        typer.echo(config_schema() if schema else config_yaml(config).rstrip())


@app.command()
def demo(
    output_dir: Annotated[
        Path | None, typer.Option("--output", help="where to write; default a new temporary one")
    ] = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Cluster handwritten digits by the general checkpoint."""
    with _reported(debug):
        from hilander_dist.jobs.demo import run_demo

        where = output_dir or Path(tempfile.mkdtemp(prefix="hilander-demo-"))
        typer.echo(run_demo(where, address, debug))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with the command's exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    for option, first, second in zip(given, given[1:], given[2:], strict=False):
        if option in PATHS and not second.startswith("-"):
            typer.echo(
                f"error: {second}: one path too many behind {option} {first}: quote a glob, {option} '*.parquet', or repeat "
                f"{option}",
                err=True,
            )
            raise SystemExit(2)
    app(args=given)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hilander_dist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


def _check_locations(input_uris: Sequence[str], output_uri: str, model_uri: str | None = None) -> None:
    """Find a wrong key or a server that is down before the imports of torch and Ray, which take 3 s of a core."""
    from hilander_dist.source.files import refuse_overlap
    from hilander_dist.storage import Storage, check_reachable, check_readable

    for uri in input_uris:
        check_readable(uri)
    refuse_overlap(input_uris, output_uri)
    if model_uri is not None:
        check_reachable(model_uri)
    Storage(output_uri).check_writable()


@contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """Turn errors into one line and an exit code; with ``debug`` into a traceback before it."""
    configure_log(debug)
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        sys.stdout.flush()
        if debug:
            typer.echo(redact(traceback.format_exc()), err=True)
        text = redact(" ".join(str(error).split()))
        if isinstance(error, HilanderError):
            typer.echo(f"error: {text}", err=True)
            raise typer.Exit(error.exit_code) from None
        typer.echo(f"internal error: {type(error).__name__}: {text[:500]} (--debug shows the traceback)", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    main()
