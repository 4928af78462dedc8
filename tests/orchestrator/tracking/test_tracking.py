from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Experiment, Run
from mlflow.tracking import MlflowClient

from fedveil.orchestrator.tracking import (
    ImagePolicy,
    SweepTracker,
    SweptKey,
    TrackingSettings,
    TrialTracker,
    replay,
    without_passwords,
)
from fedveil.orchestrator.tracking.names import TOKEN_TAG
from fedveil.orchestrator.tracking.views import NOTE_TAG, VIEW_TAG


@pytest.fixture(scope="module", params=["server", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "server":
        return str(request.getfixturevalue("mlflow_server").uri)
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def settings(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> TrackingSettings:
    name = request.node.name.replace("[", "-").replace("]", "")
    return TrackingSettings(experiment=name, uri=store, spool=tmp_path / "spool")


def experiment_of(client: MlflowClient, name: str) -> Experiment:
    found = client.get_experiment_by_name(name)
    assert found is not None
    return found


def recorded(where: TrackingSettings) -> dict[str, Run]:
    """Deliver what waits, and return the experiment's runs by their names."""
    assert replay(where.spool_folder).waiting == 0
    client = MlflowClient(where.uri)
    runs = client.search_runs([experiment_of(client, where.experiment).experiment_id])
    found = {str(run.info.run_name): run for run in runs}
    assert len(found) == len(runs)
    return found


def trial(settings: TrackingSettings, parent: str | None = None, run_id: str | None = None) -> TrialTracker:
    return TrialTracker(
        settings,
        parent_run_id=parent,
        name="latent-0.5",
        params={"defense.name": "latent", "defense.strength": 0.5, "seed": 0},
        swept=["defense.strength", "defense.name"],
        run_id=run_id,
    )


def history(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_a_sweep_and_its_trial_are_recorded_under_the_shared_names(settings: TrackingSettings) -> None:
    client = MlflowClient(settings.uri)
    swept = [
        SweptKey("defense.strength", "loguniform 0.1 to 4"),
        SweptKey("defense.name", "latent", numeric=False),
    ]
    with SweepTracker(settings, name="sweep", swept=swept, objectives={"privacy/mse": "max"}) as sweep:
        with trial(settings, sweep.run_id) as tracker:
            for step in range(3):
                tracker.log_curve({"fl/accuracy": 0.5 + step / 8, "fl/loss": 2.0 - step}, step)
            tracker.log_final({"utility/accuracy": 0.75, "attack/adaptive/mse": 0.0125})
            tracker.log_dict({"defense": {"name": "latent"}}, "config/trial.yaml")
        sweep.summary({"sweep/trials": 1})
    runs = recorded(settings)
    child, parent = runs["latent-0.5"], runs["sweep"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert child.data.params == {"defense.name": "latent", "defense.strength": "0.5", "seed": "0"}
    assert child.data.metrics == {
        "swept/defense.strength": 0.5,
        "fl/accuracy": 0.75,
        "fl/loss": 0.0,
        "utility/accuracy": 0.75,
        "attack/adaptive/mse": 0.0125,
    }
    assert history(client, child.info.run_id, "fl/accuracy") == [(0, 0.5), (1, 0.625), (2, 0.75)]
    assert parent.data.metrics == {"sweep/trials": 1.0}
    config = Path(client.download_artifacts(child.info.run_id, "config/trial.yaml"))
    assert config.read_text() == "defense:\n  name: latent\n"
    assert "loguniform 0.1 to 4" in parent.data.tags["mlflow.note.content"]
    note = experiment_of(client, settings.experiment).tags[NOTE_TAG]
    assert "* `utility/accuracy`: test accuracy of the federated model. Higher is better." in note
    assert {"`privacy/trained_mse`", "`privacy/baseline_mse`"} <= set(note.replace(":", " ").split())
    assert not [path for path in settings.spool_folder.iterdir() if path.is_dir()]


def test_a_resumed_trial_continues_its_run_and_repeats_no_point(settings: TrackingSettings) -> None:
    client = MlflowClient(settings.uri)
    first = trial(settings)
    for step in range(4):
        first.log_curve({"fl/accuracy": step / 8}, step)
    assert replay(settings.spool_folder).waiting == 0
    assert not first.run_id.startswith("pending-")
    # The process dies here, after round 3; its checkpoint is of round 1.
    with trial(settings, run_id=first.run_id) as second:
        assert second.run_id == first.run_id
        for step in range(2, 6):
            second.log_curve({"fl/accuracy": step / 8}, step)
        assert replay(settings.spool_folder).waiting == 0
        second.log_final({"privacy/mse": 0.25})
        second.log_final({"privacy/mse": 0.5})
    (run,) = recorded(settings).values()
    assert (run.info.run_id, run.info.status) == (first.run_id, "FINISHED")
    assert history(client, first.run_id, "fl/accuracy") == [(step, step / 8) for step in range(6)]
    assert history(client, first.run_id, "privacy/mse") == [(0, 0.25)]
    assert history(client, first.run_id, "swept/defense.strength") == [(0, 0.5)]


def test_a_retry_after_a_failure_ends_as_finished_with_the_params_of_the_first_try(
    settings: TrackingSettings,
) -> None:
    with pytest.raises(RuntimeError, match="lost"), trial(settings):
        raise RuntimeError("lost\nworker")
    (failed,) = recorded(settings).values()
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"] == "RuntimeError: lost worker"
    assert failed.data.tags["error.traceback"].rstrip().endswith("RuntimeError: lost\nworker")
    with TrialTracker(
        settings, parent_run_id=None, name="again", params={"seed": 1, "fl.rounds": 3}, run_id=failed.info.run_id
    ):
        (run,) = recorded(settings).values()
        assert run.info.status == "RUNNING"
    (run,) = recorded(settings).values()
    assert run.info.status == "FINISHED"
    assert not {"error", "error.traceback"} & run.data.tags.keys()
    assert run.data.params["seed"] == "0"
    assert run.data.params["fl.rounds"] == "3"


@pytest.mark.parametrize(
    ("leaves_by", "status"),
    [(KeyboardInterrupt(), "KILLED"), (SystemExit(0), "KILLED"), (SystemExit(3), "KILLED")],
    ids=repr,
)
def test_the_status_says_how_the_block_was_left(
    settings: TrackingSettings, leaves_by: BaseException, status: str
) -> None:
    with pytest.raises(type(leaves_by)), trial(settings):
        raise leaves_by
    (run,) = recorded(settings).values()
    assert run.info.status == status
    assert (run.data.tags.get("stopped_by") == "scheduler") == (leaves_by.args == (0,))


def test_closing_the_sweep_marks_a_trial_that_died_as_killed(settings: TrackingSettings) -> None:
    sweep = SweepTracker(settings, name="sweep")
    died = trial(settings, sweep.run_id)
    assert recorded(settings)["latent-0.5"].info.status == "RUNNING"
    sweep.finish()
    assert recorded(settings)["latent-0.5"].info.status == "KILLED"
    died.finish()  # it was only slow: its own word counts
    assert recorded(settings)["latent-0.5"].info.status == "FINISHED"


def test_what_is_not_finite_is_left_out_and_named_in_a_tag(settings: TrackingSettings) -> None:
    with trial(settings) as tracker:
        tracker.log_curve({"fl/loss": float("nan"), "fl/accuracy": 0.5}, 2)
        tracker.log_final({"privacy/psnr": float("inf"), "privacy/mse": 0.25})
    (run,) = recorded(settings).values()
    data = run.data
    assert "fl/loss" not in data.metrics
    assert "privacy/psnr" not in data.metrics
    assert data.metrics["privacy/mse"] == 0.25
    assert data.tags["not_finite/fl/loss"] == "nan at step 2"
    assert data.tags["not_finite/privacy/psnr"] == "inf at step 0"


def test_more_than_one_batch_of_params_and_metrics_and_a_long_value(settings: TrackingSettings) -> None:
    params: dict[str, object] = {f"data.key{number}": number for number in range(250)}
    params["model.name"] = "x" * 7000
    with TrialTracker(settings, parent_run_id=None, name="big", params=params) as tracker:
        tracker.log_final({f"attack/a{number}/mse": number / 8 for number in range(1050)})
    (run,) = recorded(settings).values()
    assert len(run.data.params) == 251
    assert len(run.data.params["model.name"]) == 6000
    assert len(run.data.metrics) == 1050
    assert run.data.metrics["attack/a1049/mse"] == 131.125


@pytest.mark.parametrize(
    ("policy", "sent"),
    [(ImagePolicy.NONE, set()), (ImagePolicy.GRID, {"grid"}), (ImagePolicy.ALL, {"grid", "victim"})],
)
def test_images_leave_only_as_far_as_the_policy_lets_them(
    settings: TrackingSettings, policy: ImagePolicy, sent: set[str]
) -> None:
    client = MlflowClient(settings.uri)
    with trial(replace(settings, images=policy)) as tracker:
        for _ in range(2):  # the second time replaces the first
            tracker.log_image(np.full((8, 12, 3), 0.5), "grid/reconstruction", 4)
        tracker.log_image(np.zeros((8, 8), dtype=np.uint8), "victim/3_adaptive_2", 4)
    (run,) = recorded(settings).values()
    files = sorted(file.path for file in client.list_artifacts(run.info.run_id, "images"))
    assert {Path(file).name.split("~")[0] for file in files} == sent
    assert len(files) == 2 * len(sent)
    assert ("mlflow.loggedImages" in run.data.tags) == bool(sent)


@pytest.mark.parametrize(
    ("policy", "sent"),
    [
        (ImagePolicy.NONE, {"pareto.png"}),
        (ImagePolicy.GRID, {"pareto.png", "comparison.png"}),
        (ImagePolicy.ALL, {"pareto.png", "comparison.png"}),
    ],
)
def test_the_summary_holds_pictures_only_if_the_policy_lets_them(
    settings: TrackingSettings, tmp_path: Path, policy: ImagePolicy, sent: set[str]
) -> None:
    files = [tmp_path / "pareto.png", tmp_path / "comparison.png"]
    for path in files:
        path.write_bytes(b"png")
    with SweepTracker(replace(settings, images=policy), name="sweep") as sweep:
        sweep.summary({"sweep/trials": 1}, files[:1], pictures=files[1:])
    (run,) = recorded(settings).values()
    stored = MlflowClient(settings.uri).list_artifacts(run.info.run_id, "summary")
    assert {Path(file.path).name for file in stored} == sent


def test_pictures_are_named_as_the_mlflow_client_names_them(settings: TrackingSettings) -> None:
    client = MlflowClient(settings.uri)
    with trial(settings) as tracker:
        tracker.log_image(np.zeros((8, 8, 3)), "grid/ours", 7)
        assert replay(settings.spool_folder).waiting == 0
        client.log_image(tracker.run_id, np.zeros((8, 8, 3)), key="grid/theirs", step=7)
    files = [Path(file.path).name for file in client.list_artifacts(tracker.run_id, "images")]

    def shape(whose: str) -> set[tuple[object, ...]]:
        parts = [name.split("+") for name in files if whose in name]
        return {(part[0].replace(whose, ""), *part[1:4], len(part), part[-1].split(".")[-1]) for part in parts}

    assert shape("ours") == shape("theirs")
    assert len(files) == 4


def test_the_view_is_set_once_and_follows_what_is_swept(settings: TrackingSettings) -> None:
    client = MlflowClient(settings.uri)
    strength = SweptKey("defense.strength", "grid")
    weight = SweptKey("defense.privacy_weight", "grid")

    def tags(*swept: SweptKey) -> dict[str, str]:
        with SweepTracker(settings, name="sweep", swept=swept, image_step=3):
            pass
        assert replay(settings.spool_folder).runs == 1
        return dict(experiment_of(client, settings.experiment).tags)

    first = tags(strength)
    assert tags(strength)[VIEW_TAG] == first[VIEW_TAG]
    client.set_experiment_tag(
        experiment_of(client, settings.experiment).experiment_id, NOTE_TAG, "the user's own words"
    )
    other = tags(strength, weight)
    assert other[NOTE_TAG] == "the user's own words"
    old, new = json.loads(first[VIEW_TAG]), json.loads(other[VIEW_TAG])
    assert new["createdAt"] == old["createdAt"]
    # Side by side they would be too narrow; the pictures come right after the trade-off.
    (section,) = json.loads(new["state"])["compareRunSections"]
    assert section["columns"] == 1
    assert [card["type"] for card in json.loads(new["state"])["compareRunCharts"]][:2] == ["SCATTER", "IMAGE"]
    charts = {card["type"]: card for card in json.loads(new["state"])["compareRunCharts"]}
    assert charts["SCATTER"]["xaxis"] == {"key": "privacy/mse", "type": "METRIC"}
    assert charts["SCATTER"]["yaxis"] == {"key": "utility/accuracy", "type": "METRIC"}
    assert charts["PARALLEL"]["selectedMetrics"][:2] == [
        "swept/defense.strength",
        "swept/defense.privacy_weight",
    ]
    assert (charts["IMAGE"]["imageKeys"], charts["IMAGE"]["step"]) == (["grid/reconstruction"], 3)


def test_a_refused_operation_is_set_aside_and_the_rest_goes_on(settings: TrackingSettings) -> None:
    with trial(settings) as tracker:
        tracker.set_tags({"no//path": "MLflow takes names that are proper paths"})
        tracker.log_final({"privacy/mse": 0.25})
    (run,) = recorded(settings).values()
    assert (run.info.status, run.data.metrics["privacy/mse"]) == ("FINISHED", 0.25)
    (kept,) = settings.spool_folder.glob("*/rejected.jsonl")
    assert kept.parent.name == run.data.tags[TOKEN_TAG]


def test_a_run_is_known_by_its_pending_name_and_by_its_id_once_it_is_delivered(settings: TrackingSettings) -> None:
    client = MlflowClient(settings.uri)
    sweep = SweepTracker(settings, name="sweep")
    elsewhere = pickle.loads(pickle.dumps(settings))  # noqa: S301
    tracker = trial(elsewhere, sweep.run_id)
    tracker.log_curve({"fl/loss": 1.0}, 0)
    name = tracker.run_id
    assert name.startswith("pending-")
    assert replay(settings.spool_folder).waiting == 0
    assert client.get_run(tracker.run_id).data.metrics["fl/loss"] == 1.0
    tracker.log_curve({"fl/loss": 0.5}, 1)
    with trial(elsewhere, sweep.run_id, run_id=name) as resumed:
        resumed.log_curve({"fl/loss": 0.5}, 1)
        resumed.log_curve({"fl/loss": 0.25}, 2)
    sweep.finish()
    runs = recorded(settings)
    assert not [path for path in settings.spool_folder.iterdir() if path.is_dir()]
    run = runs["latent-0.5"]
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", runs["sweep"].info.run_id)
    assert tracker.run_id == run.info.run_id
    assert history(client, run.info.run_id, "fl/loss") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_a_run_that_the_store_has_lost_is_made_anew(settings: TrackingSettings) -> None:
    with trial(settings, run_id="0" * 32) as tracker:
        tracker.log_final({"privacy/mse": 0.25})
    (run,) = recorded(settings).values()
    assert run.data.metrics["privacy/mse"] == 0.25


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda tracker: tracker.log_curve({"fl/acuracy": 1.0}, 0), "fl/acuracy"),
        (lambda tracker: tracker.log_final({"privacy/mse": 1.0, "done": 1.0}), "done"),
        (lambda tracker: tracker.log_final({"attack/a/b/c": 1.0}), "attack/a/b/c"),
        (lambda tracker: tracker.log_image(np.zeros((4, 4)), "face", 0), "face"),
        (lambda tracker: tracker.set_tags({"a tag?": "x"}), "a tag?"),
        (lambda tracker: tracker.log_dict({}, "a.pickle"), "a.pickle"),
        (lambda tracker: tracker.log_dict({}, "../a.yaml"), "below the run's artifacts"),
    ],
    ids=["curve", "final", "attack", "image", "tag", "dict", "folder"],
)
def test_a_name_that_is_not_on_the_list_is_refused_at_once(tmp_path: Path, call: object, name: str) -> None:
    assert callable(call)
    offline = TrackingSettings(experiment="x", uri="http://127.0.0.1:9", spool=tmp_path)
    with pytest.raises(ValueError, match=name.replace("?", r"\?")):
        call(trial(offline))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://u:p@ss@db/x", "postgresql://db/x"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("no answer from https://u:p@h/ or //v:q@i", "no answer from https://h/ or //i"),
        ("https://h/x?password=a%20b&y=1", "https://h/x?password=***&y=1"),
        ("https://h/?a=1&access_token=t0k.en-; rest", "https://h/?a=1&access_token=***; rest"),
        ("mssql://h/d?sslPassword=x&API-key=y", "mssql://h/d?sslPassword=***&API-key=***"),
        ("DRIVER={ODBC 18};UID=me;PWD={a;b}}c};Encrypt=yes", "DRIVER={ODBC 18};UID=me;PWD=***;Encrypt=yes"),
        ("?odbc_connect=UID%3Dme%3BPWD%3Dp%40ss%3BEncrypt%3Dyes", "?odbc_connect=UID%3Dme%3BPWD%3D***%3BEncrypt%3Dyes"),
        ("pwd=/home/me says that token = 3", "pwd=*** says that token = 3"),
        ("postgresql+psycopg2://u:1/p@ss?x#y@db:5432/x", "postgresql+psycopg2://db:5432/x"),
        ("no cluster at 'ray://u:a/b@head:10001'", "no cluster at 'ray://head:10001'"),
        ("s3://a:b@c?d@bucket/runs", "s3://bucket/runs"),
        ("http://host:5000/x@y", "http://host:5000/x@y"),
        ("https://x.blob.net/c?sv=1&sig=a%2Fb&key=k;auth=z", "https://x.blob.net/c?sv=1&sig=***&key=***;auth=***"),
        ("key=5 and private_key=6", "key=5 and private_key=***"),
        ("a-" * 50_000, "a-" * 50_000),
        ("//" + "a:" * 50_000, "//" + "a:" * 50_000),
    ],
    ids=lambda text: text[:30],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
    assert without_passwords({"a": [text, 1], "b": None}) == {"a": [shown, 1], "b": None}


def test_relative_places_become_absolute_in_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = TrackingSettings(experiment="a b/c")
    assert settings.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.spool == tmp_path / "runs" / "a_b_c" / "spool"
    assert TrackingSettings(experiment="e", uri="http://h:1", spool=Path("s")).spool_folder == tmp_path / "s"
