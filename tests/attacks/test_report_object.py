from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.scoring import JudgeQuality
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.fl.seeding import torch_stream

FIT = JudgeQuality(0.9, 0.8, 0.5)
SCORES = {"weak": [0.4, 0.3, 0.2, 0.3], "strong": [0.1, 0.3, 0.1, 0.1], "baseline": [0.0, 0.0, 0.0, 0.0]}


def record(attack: str, victim: int, mse: float) -> PrivacyRecord:
    return PrivacyRecord(
        attack, ThreatModel(), 0, 0, 0, victim, victim % 2, mse, 10.0, 0.5, True, attacker_label=1, identified=False
    )


def report_of(victims: range, *, notes: tuple[str, ...] = ()) -> AuditReport:
    images = torch.rand(12, 1, 12, 12, generator=torch_stream(0, "report"))[list(victims)]
    return AuditReport(
        records=tuple(record(attack, v, mse[v]) for attack, mse in SCORES.items() for v in victims if v < len(mse)),
        reconstructions={"weak": 0.5 * images, "strong": 0.9 * images},
        originals=images,
        trained=0.95 * images,
        victims=tuple(victims),
        adaptive=frozenset({"strong"}),
        judge=FIT,
        notes=notes,
    )


def test_the_worst_case_is_the_leakiest_attack_s_mean_with_its_interval() -> None:
    report = report_of(range(4))
    assert report.worst("mse") == pytest.approx(0.15)
    mean, low, high = report.interval("mse")
    assert low is not None
    assert high is not None
    # four victims: Student's t of three degrees of freedom, and no error is below 0
    assert 0.0 <= low < mean
    assert high - mean == pytest.approx(3.18245 * 0.1 / 2, rel=1e-4)
    assert report.worst("attacker_accuracy") == 0.5
    summary = report.summary()
    assert summary["privacy/mse"] == pytest.approx(0.15)
    assert (summary["privacy/mse_low"], summary["privacy/mse_high"]) == (low, high)
    assert summary["privacy/complete"] == 1.0


def test_what_was_not_scored_is_said_so() -> None:
    blind = AuditReport(reconstructions={"weak": torch.zeros(1, 1, 12, 12)}, victims=(0,))
    assert blind.summary() == {}
    with pytest.raises(FedveilError, match=r"mse: nothing was scored.*not given the original images"):
        blind.worst("mse")
    with pytest.raises(FedveilError, match="attacker_accuracy: there is no judge"):
        replace(report_of(range(4)), judge=None).worst("attacker_accuracy")
    with pytest.raises(FedveilError, match="no attack on an update left a score of ssim"):
        replace(report_of(range(4)), records=(record("baseline", 0, 0.1),)).worst("ssim")
    with pytest.raises(FedveilError, match="left a score of mse_to_perturbed"):
        report_of(range(4)).worst("mse_to_perturbed")


def test_parts_of_an_audit_merge_into_the_whole() -> None:
    whole = report_of(range(4), notes=("a", "b", "c"))
    parts = [report_of(range(2), notes=("a", "b")), report_of(range(2, 4), notes=("a", "c"))]
    merged = AuditReport.merged(parts)
    assert set(merged.records) == set(whole.records)
    assert (merged.victims, merged.adaptive, merged.judge) == (whole.victims, whole.adaptive, FIT)
    assert merged.notes == ("a", "b", "c")
    assert merged.summary() == pytest.approx(whole.summary())
    assert merged.originals is not None
    assert whole.originals is not None
    assert torch.equal(merged.originals, whole.originals)
    assert {k: v.tolist() for k, v in merged.reconstructions.items()} == {
        k: v.tolist() for k, v in whole.reconstructions.items()
    }


def test_pictures_that_a_part_lacks_are_not_shown() -> None:
    first, second = report_of(range(2)), report_of(range(2, 4))
    merged = AuditReport.merged(
        [first, replace(second, trained=None, reconstructions={"weak": second.reconstructions["weak"]})]
    )
    assert list(merged.reconstructions) == ["weak"]
    assert merged.trained is None
    assert merged.originals is not None
    assert AuditReport.merged([]).records == ()


def test_the_first_victims_are_those_of_low_numbers_and_records_stay() -> None:
    some = AuditReport.merged([report_of(range(2, 4)).first(3), report_of(range(4, 6)).first(3)])
    assert some.victims == (2,)
    assert {len(images) for images in some.reconstructions.values()} == {1}
    assert some.originals is not None
    assert some.trained is not None
    assert len(some.originals) == len(some.trained) == 1
    assert {r.victim for r in some.records} == {2, 3}


@pytest.mark.parametrize("known", [True, False])
def test_the_figure_shows_eight_victims_at_most(known: bool, tmp_path: Path) -> None:
    report = report_of(range(12))
    shown = report if known else replace(report, originals=None, trained=None)
    shown.figure(str(tmp_path / "leak.png"), captions=[f"class {i}" for i in range(12)])
    shown.first(8).figure(tmp_path / "eight.png", captions=[f"class {i}" for i in range(8)])
    with Image.open(tmp_path / "leak.png") as leak, Image.open(tmp_path / "eight.png") as eight:
        assert leak.size == eight.size
        assert leak.tobytes() == eight.tobytes()


def test_there_must_be_something_to_draw(tmp_path: Path) -> None:
    with pytest.raises(FedveilError, match="no reconstruction to draw"):
        report_of(range(4)).first(0).figure(tmp_path / "leak.png")
