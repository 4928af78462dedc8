from __future__ import annotations

from typing import Any

from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.report import TrialGroup, TrialRow, group_seeds
from fedveil.orchestrator.report.html.limits import FEW_VICTIMS, not_known, not_tested


def settings_of(*seeds: int, **metrics: float) -> list[TrialGroup]:
    return group_seeds(
        [
            TrialRow(
                f"latent-seed{seed}",
                "FINISHED",
                {"defense.name": "latent", "seed": seed},
                {name.replace("__", "/"): value for name, value in metrics.items()},
            )
            for seed in seeds
        ]
    )


def records(victims: int, clients: int = 1) -> list[PrivacyRecord]:
    return [
        PrivacyRecord("a", ThreatModel(), 0, 0, client, victim, 0, 0.1, 1.0, 0.1, True)
        for victim in range(victims)
        for client in [victim % clients]
        for _ in range(2)  # met by two attacks
    ]


def test_a_bound_is_never_claimed_and_few_images_and_seeds_are_named() -> None:
    lines = not_known(settings_of(0), records(8, 2), failed=0, remark="")
    assert "none of them is a bound" in lines[0]
    (sample,) = [line for line in lines if line.startswith("How far this holds")]
    assert "8 images of 2 clients were attacked and each training was run once" in sample.lower()
    lines = not_known(settings_of(0, 1, 2), records(FEW_VICTIMS), failed=0, remark="")
    assert not any(line.startswith("How far this holds") for line in lines)


def test_attackers_that_were_not_done_learning_are_named() -> None:
    open_ended = settings_of(0, attack__adaptive__inverse_flat=0.0)
    (line,) = [one for one in not_known(open_ended, [], failed=0, remark="") if "trains to the end" in one]
    assert "against latent its own network" in line
    flat = settings_of(0, attack__adaptive__inverse_flat=1.0)
    assert not any("trains to the end" in one for one in not_known(flat, [], failed=0, remark=""))


def test_failures_and_a_federation_that_does_not_pay_are_named() -> None:
    lines = not_known(settings_of(0), [], failed=2, remark="Federating does not pay here")
    assert "What 2 trials would have shown that did not finish." in lines
    assert lines[-1] == "Whether joining pays at all. Federating does not pay here."


FILE: dict[str, Any] = {
    "fl": {"rounds": 8, "batch_size": 16},
    "audit": {"rounds": [0, "last"], "observations": 1, "batch_size": 1, "local_steps": 1},
}


def test_what_no_attacker_was_granted_was_not_tested() -> None:
    lines = not_tested(settings_of(0), {"adaptive": ThreatModel(defense_algorithm=True)}, [FILE])
    text = "\n".join(lines)
    assert "(secure aggregation)" in text
    assert "has stolen what a client's protection has learnt" in text
    assert "inverts the update perfectly" in text
    assert "(membership)" in text
    assert "several updates that a client made of the same image" in text
    assert "Updates of other rounds than 0 and last, of 8" in text
    assert "made of 1 image in 1 step, while clients train on 16 at a time" in text


def test_what_was_tested_is_not_listed() -> None:
    granted = {
        "adaptive_modules": ThreatModel(defense_algorithm=True, defense_modules=True),
        "trained_images": ThreatModel(trained_images=True),
    }
    more = {"fl": {"rounds": 1, "batch_size": 1}, "audit": {**FILE["audit"], "rounds": None, "observations": 4}}
    sums = group_seeds(
        [TrialRow("s", "FINISHED", {"defense.name": "latent+secure_aggregation"}, {"privacy/membership_auc": 0.5})]
    )
    lines = not_tested(sums, granted, [more])
    assert [line[:9] for line in lines] == ["A server ", "What the ", "Protectio"]
    assert "breaks the rules" in lines[0]
    # Without records or settings nothing is known of them, and nothing is said.
    assert not_tested(sums, {}, []) == lines
