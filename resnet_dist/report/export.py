"""The records of a run for other programs: CSV, Trackio, MLflow, Weights & Biases.

Written after the fact, from metrics.jsonl, so that training never depends on them. Nothing is sent
anywhere: Trackio and MLflow write their local stores, Weights & Biases an offline run for `wandb
sync`.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_dist.config.load import to_flat
from resnet_dist.errors import UserError
from resnet_dist.report.facts import RunFacts
from resnet_dist.system.files import replace_file

PROJECT = "resnet_dist"


def to_csv(run: RunFacts, folder: Path) -> str:
    """One row per record, one column per tag. Returns where it is."""
    tags = list(dict.fromkeys(tag for record in run.records for tag in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, tags, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.records)
    path = folder / "metrics.csv"
    replace_file(path, lambda file: file.write(buffer.getvalue().encode()))
    return str(path)


def to_trackio(run: RunFacts, folder: Path) -> str:
    """A run of project `resnet_dist` in Trackio's local store (TRACKIO_DIR)."""
    del folder
    trackio = _package("trackio")
    trackio.init(project=PROJECT, name=run.name, config=_settings(run), embed=False)
    for record in run.records:
        trackio.log(_metrics(record), step=int(record["step"]))
    trackio.finish()
    return f"trackio show --project {PROJECT}"


def to_mlflow(run: RunFacts, folder: Path) -> str:
    """A run of experiment `resnet_dist` in MLflow's store: MLFLOW_TRACKING_URI, else a database
    mlflow.db in `folder`."""
    mlflow = _package("mlflow")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params(_settings(run))
        for record in run.records:
            time = record.get("time")
            mlflow.log_metrics(
                _metrics(record),
                step=int(record["step"]),
                **({} if time is None else {"timestamp": int(1e3 * float(time))}),
            )
    return f"mlflow ui --backend-store-uri {uri}"


def to_wandb(run: RunFacts, folder: Path) -> str:
    """An offline run of project `resnet_dist` in `folder`."""
    wandb = _package("wandb")
    started = wandb.init(
        project=PROJECT, name=run.name, config=_settings(run), dir=str(folder), mode="offline"
    )
    by_step: dict[int, dict[str, float]] = {}
    for record in run.records:  # of one step it takes one record
        by_step.setdefault(int(record["step"]), {}).update(_metrics(record))
    for step, metrics in by_step.items():
        started.log(metrics, step=step)
    where = Path(started.dir).parent
    started.finish()
    return f"wandb sync {where}"


EXPORTS: dict[str, Callable[[RunFacts, Path], str]] = {
    "csv": to_csv,
    "trackio": to_trackio,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}
"""What `--export` may say; each returns where the result is, or the command that shows it."""


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"--export {name}: the package {name} is not installed; pip install {name}, or take "
            f"--export csv"
        ) from None


def _settings(run: RunFacts) -> dict[str, Any]:
    return {} if run.config is None else {k: str(v) for k, v in to_flat(run.config).items()}


def _metrics(record: dict[str, float | int]) -> dict[str, float]:
    """The numbers of a record that other programs take."""
    return {
        tag: float(value)
        for tag, value in record.items()
        if tag not in ("step", "time") and math.isfinite(float(value))
    }
