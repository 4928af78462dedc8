"""What MLflow holds of an experiment, brought together for a report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from strict_html import read

from fedveil.orchestrator.cli import main
from fedveil.orchestrator.report.dossier import Dossier, dossier_from_mlflow
from fedveil.orchestrator.tracking.names import KIND_TAG, VERSIONS_TAG

GRID = "grid~reconstruction+step+0+timestamp+0+abc"
METRICS = {"utility/accuracy": 0.9, "privacy/mse": 0.01, "privacy/complete": 1.0}


class Record:
    """Writes runs as a trial or a sweep would."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.folder = folder
        self.uri = uri
        self.client = MlflowClient(uri)
        self.name = folder.name
        self.experiment = self.client.create_experiment(self.name, (folder / "artifacts").as_uri())
        self.start = 0

    def run(
        self,
        name: str,
        kind: str = "trial",
        *,
        yaml: str | None = None,
        picture: str | None = None,
        versions: str | None = None,
        defense: str = "latent",
    ) -> None:
        self.start += 86_400_000
        run = self.client.create_run(
            self.experiment, start_time=self.start, tags={KIND_TAG: kind}, run_name=name
        ).info.run_id
        self.client.log_param(run, "defense.name", defense)
        for key, value in METRICS.items():
            self.client.log_metric(run, key, value)
        if yaml is not None:
            self.client.log_text(run, yaml, "experiment.yaml")
        if versions is not None:
            self.client.set_tag(run, VERSIONS_TAG, versions)
        if picture is not None:
            file = self.folder / Path(picture).name
            Image.new("L", (2, 2)).save(file, "PNG")
            self.client.log_artifact(run, str(file), str(Path(picture).parent))
        self.client.set_terminated(run, "FINISHED")

    def read(self) -> Dossier:
        return dossier_from_mlflow(self.uri, self.name)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: making it takes long."""
    return f"sqlite:///{tmp_path_factory.mktemp('record') / 'mlflow.db'}"


@pytest.fixture
def record(uri: str, tmp_path: Path) -> Record:
    return Record(uri, tmp_path)


def test_settings_versions_and_dates_stand_beside_each_trial(record: Record) -> None:
    record.run("a", yaml="fl: {rounds: 3}\n", versions="fedveil 0.1.0")
    record.run("b", yaml="[no, mapping]\n")
    record.run("c", yaml="{no: yaml\n")
    record.run("d")
    dossier = record.read()
    assert [row.name for row in dossier.rows] == ["a", "b", "c", "d"]
    assert [one.settings for one in dossier.evidence] == [{"fl": {"rounds": 3}}, {}, {}, {}]
    assert dossier.settings == [{"fl": {"rounds": 3}}]
    assert [one.versions for one in dossier.evidence] == ["fedveil 0.1.0", None, None, None]
    assert dossier.evidence[1].began == datetime(1970, 1, 3, tzinfo=UTC)
    assert dossier.pictures == ()
    assert not dossier.forbidden


def test_the_newest_sweeps_comparison_comes_before_grids_of_single_trials(record: Record) -> None:
    record.run("a", picture=f"images/{GRID}.png")
    (grid,) = record.read().pictures
    assert grid.title == "latent"
    assert grid.png.startswith(b"\x89PNG")
    record.run("sweep", "sweep", picture="summary/comparison.png")
    record.run("later sweep", "sweep", picture="summary/pareto.png")
    (comparison,) = record.read().pictures
    assert comparison.title == ""


def test_a_grid_per_defence(record: Record) -> None:
    record.run("a", picture=f"images/{GRID}.png")
    record.run("b", picture=f"images/{GRID}.png", defense="none")
    record.run("c", picture="images/victim~0_original+step+0.png", defense="top_k")
    assert [one.title for one in record.read().pictures] == ["latent", "none"]


def test_where_one_trial_forbids_pictures_none_is_handed_on(record: Record) -> None:
    record.run("sweep", "sweep", picture="summary/comparison.png")
    record.run("a", picture=f"images/{GRID}.png", yaml="tracking: {images: grid}\n")
    assert len(record.read().pictures) == 1
    record.run("b", yaml="tracking: {images: none}\n")
    dossier = record.read()
    assert dossier.forbidden
    assert dossier.pictures == ()


def test_a_file_that_is_no_picture_is_left_out(record: Record) -> None:
    record.run("a")
    run = record.client.search_runs([record.experiment])[0].info.run_id
    record.client.log_text(run, "<script>", f"images/{GRID}.png")
    assert record.read().pictures == ()


def test_the_command_writes_the_page_for_its_owner_alone(
    record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record.run("a", picture=f"images/{GRID}.png", yaml="fl: {rounds: 3}\n")
    monkeypatch.chdir(record.folder)
    assert main(["report", record.name, "--uri", record.uri, "--html", "r.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "page        r.html"
    file = record.folder / "r.html"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "rounds: 3" in read(file.read_text(encoding="utf-8")).text
    assert main(["report", record.name, "--uri", record.uri, "--html", "no/r.html"]) == 2
    assert capsys.readouterr().err.startswith("fedveil: --html no/r.html: there is no folder ")
