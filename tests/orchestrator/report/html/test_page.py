"""The page as a whole: what stands on it for each kind of experiment, and that nothing on it is markup of a user's."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from strict_html import Tag, read

from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.report.dossier import Dossier, Evidence, Picture
from fedveil.orchestrator.report.html.page import html_page

PNG = b"\x89PNG\r\n\x1a\n and the rest"
HOSTILE = "<img src=x onerror=alert(1)>&amp;\"'</script><script>alert(2)</script>\x1b[31m\x00"
SETTINGS: dict[str, Any] = {
    "data": {"name": "mni152"},
    "fl": {"rounds": 8, "batch_size": 16},
    "audit": {"rounds": [0, "last"], "gallery": 60, "observations": 1, "batch_size": 1, "local_steps": 1},
}
GRANTED = {
    "strongest": ThreatModel(),
    "adaptive": ThreatModel(auxiliary_data=True, defense_algorithm=True),
}


def trial(name: str, defense: str, error: float, accuracy: float = 0.9, seed: int = 0, **others: float) -> TrialRow:
    metrics = {
        "utility/accuracy": accuracy,
        "privacy/mse": error,
        "privacy/mse_low": 0.9 * error,
        "privacy/mse_high": 1.1 * error,
        "privacy/baseline_mse": 0.04,
        "privacy/complete": 1.0,
        "attack/strongest/mse": 2 * error,
        "attack/adaptive/mse": error,
        **{key.replace("__", "/"): value for key, value in others.items()},
    }
    params: dict[str, str | float] = {
        "defense.name": defense,
        "seed": seed,
        "data.name": "mni152",
        "fl.clients": 4,
        "fl.rounds": 8,
        "model.name": "convnet",
    }
    return TrialRow(name, "FINISHED", params, metrics)


FAILED = TrialRow("late", "FAILED", {"defense.name": "top_k"}, {}, "RuntimeError: no room\nTraceback")


def records(*rows: TrialRow) -> dict[str, tuple[PrivacyRecord, ...]]:
    return {
        row.name: tuple(
            PrivacyRecord(label, threat_model, 0, 0, 0, victim, 0, mse=0.1, psnr=1.0, ssim=0.1, label_recovered=True)
            for label, threat_model in GRANTED.items()
            for victim in range(3)
        )
        for row in rows
        if row.finished
    }


def dossier(*rows: TrialRow, pictures: tuple[Picture, ...] = (), **settings: Any) -> Dossier:
    began = datetime(2026, 3, 1, tzinfo=UTC)
    evidence = tuple(
        Evidence({**SETTINGS, "defense": [{"name": row.defense}], **settings}, "fedveil 0.1.0, python 3.11.2", began)
        for row in rows
    )
    return Dossier("e", rows, evidence, records(*rows), pictures)


def page(*rows: TrialRow, **others: Any) -> Tag:
    return read(html_page(dossier(*rows, **others)))


def section(html: Tag, title: str) -> Tag:
    (found,) = [one for one in html.all("section") if one.all("h2")[0].text == title]
    return found


SWEEP = (
    trial("none", "none", 0.001, 0.95),
    trial("latent", "latent", 0.03),
    trial("top_k", "top_k", 0.039, 0.6),
    FAILED,
)


def test_a_sweep_is_answered_for_each_protection() -> None:
    html = page(*SWEEP, pictures=(Picture("", PNG),))
    assert [one.text for one in html.all("h2")] == [
        "The question",
        "The answer",
        "Use against protection",
        "What came back, as pictures",
        "The numbers",
        "What the attackers were granted",
        "What is not known",
        "What was not tested",
        "To repeat it",
    ]
    answer = section(html, "The answer")
    assert "Images came back, or were recognised, with no protection." in answer.text
    assert "More came back than a guess tells, though not whole images, with latent." in answer.text
    assert "hardly more than a guess tells with top k." in answer.text
    assert "No trained attacker is a bound" in answer.text
    # 1 - 0.03 / 0.04, by hand
    assert "it went 25 % of the way" in answer.text
    assert "5.0 points below that without protection" in answer.text
    assert "late (failed): RuntimeError: no room" in section(html, "The numbers").text
    assert "Traceback" not in html.text
    assert "1 trial would have shown that did not finish" in section(html, "What is not known").text
    facts = html.all("dl")[0].text
    assert "2026-03-01" in facts
    assert "4 clients, 8 rounds, model convnet" in facts
    assert "3 trials of 3 settings; 1 trial did not finish" in facts


def test_the_figure_has_a_labelled_link_to_the_line_of_each_setting() -> None:
    html = page(*SWEEP)
    points = html.with_class("point")
    lines = {tag.attributes["id"]: tag for tag in html.all("tr") if "id" in tag.attributes}
    assert len(points) == 3
    for point in points:
        said = point.attributes["aria-label"]
        assert point.all("title")[0].text == said  # without the script the browser shows this
        line = lines[point.attributes["href"].removeprefix("#")]
        assert said.splitlines()[0] in line.all("th")[0].text
        assert [text.partition(": ")[2] for text in said.splitlines()[1:]] == [cell.text for cell in line.all("td")]
    assert "worst-case MSE: 0.0300 [0.0270, 0.0330]" in points[0].attributes["aria-label"]


def test_points_lie_where_the_figure_draws_them() -> None:
    svg = page(*SWEEP).all("svg")[0]
    circles = [tag.attributes for tag in svg.with_class("target")]
    spots = {(round(float(one["cx"]), 1), round(float(one["cy"]), 1)) for one in circles}
    # Markers of a scatter are <use> elements at their places; the legend's and the front's are elsewhere.
    uses = {
        (round(float(u.attributes["x"]), 1), round(float(u.attributes["y"]), 1))
        for u in svg.all("use")
        if "x" in u.attributes
    }
    assert len(spots) == 3
    assert spots <= uses


def test_seeds_of_a_setting_are_one_line_and_one_point() -> None:
    rows = [
        trial(f"{name}-seed{seed}", name, 0.01 * (seed + 1), seed=seed)
        for name in ("none", "latent")
        for seed in range(3)
    ]
    html = page(*rows)
    assert len(html.with_class("point")) == 2
    assert [one.attributes["id"] for one in html.all("tr") if "id" in one.attributes] == ["setting-1", "setting-2"]
    assert "each training was run" not in section(html, "What is not known").text
    assert "6 trials of 2 settings" in html.all("dl")[0].text


def test_a_single_trial_has_no_rival_to_beat() -> None:
    html = page(trial("latent", "latent", 0.03))
    assert "★" not in html.text
    assert len(html.with_class("finding")) == 1
    assert "each training was run once" in section(html, "What is not known").text


def test_an_experiment_of_which_nothing_finished_says_so() -> None:
    html = page(FAILED)
    assert "no trial finished" in section(html, "The answer").text
    assert html.all("svg") == []
    assert "no figure" in section(html, "Use against protection").text


def test_an_experiment_without_trials_says_so() -> None:
    html = page()
    assert "no trial finished" in section(html, "The answer").text
    assert "The record holds no settings" in html.text


def test_pictures_stand_in_the_page_itself() -> None:
    (image,) = page(*SWEEP, pictures=(Picture("latent k 5", PNG),)).all("img")
    kind, _, data = image.attributes["src"].partition(";base64,")
    assert (kind, base64.b64decode(data)) == ("data:image/png", PNG)
    assert "under latent k 5" in image.attributes["alt"]


def test_without_pictures_the_reason_is_given() -> None:
    title = "What came back, as pictures"
    assert "The record holds none." in section(page(*SWEEP), title).text
    assert "set to hand on no pictures" in section(page(*SWEEP, tracking={"images": "none"}), title).text


def test_nothing_that_a_user_names_is_markup() -> None:
    row = replace(trial(HOSTILE, "latent", 0.03), params={**trial("", "latent", 0.03).params, "data.name": HOSTILE})
    failed = replace(FAILED, name=HOSTILE, error=HOSTILE)
    made = dossier(row, failed, pictures=(Picture(HOSTILE, PNG),), data={"name": HOSTILE, HOSTILE: [HOSTILE]})
    html = read(html_page(replace(made, experiment=HOSTILE)))
    shown = HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
    assert len(html.all("script")) == 1
    assert len(html.all("img")) == 1
    assert shown in html.all("title")[0].text
    assert html.text.count(shown) >= 4


def test_the_policy_lets_nothing_run_or_load_but_the_pages_own() -> None:
    text = html_page(dossier(*SWEEP))
    html = read(text)
    (policy,) = [one.attributes["content"] for one in html.all("meta") if "http-equiv" in one.attributes]
    script = html.all("script")[0].text
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    # Namespaces of drawings are names, and the only addresses there are.
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_same_record_makes_the_same_page() -> None:
    assert html_page(dossier(*SWEEP)) == html_page(dossier(*SWEEP))


def test_what_it_takes_to_repeat_it() -> None:
    repeat = section(page(*SWEEP), "To repeat it")
    assert "fedveil 0.1.0, python 3.11.2" in repeat.text
    (common,) = repeat.all("pre")
    assert "rounds: 8" in common.text
    assert "defense" not in common.text
    differing = [[cell.text for cell in (*line.all("th"), *line.all("td"))] for line in repeat.all("tr")[1:]]
    assert differing[0] == ["none", "defense:\n- name: none"]
    older = Dossier("e", SWEEP, (Evidence(),) * 4)
    assert "was not recorded" in section(read(html_page(older)), "To repeat it").text


def test_what_the_attackers_were_granted_is_told_by_tier() -> None:
    grants, errors = section(page(*SWEEP), "What the attackers were granted").all("table")
    held = [[cell.text for cell in (*line.all("th"), *line.all("td"))][:7] for line in grants.all("tr")]
    assert held[1:] == [
        ["strongest", "update", "yes", "–", "–", "–", "–"],
        ["adaptive", "algorithm", "yes", "yes", "yes", "–", "–"],
    ]
    told = [[cell.text for cell in (*line.all("th"), *line.all("td"))] for line in errors.all("tr")]
    assert told[0] == ["trials", "update", "algorithm"]
    assert ["latent", "0.0600 (strongest)", "0.0300 (adaptive)"] in told
    assert "not in the record" in read(html_page(Dossier("e", SWEEP, (Evidence(),) * 4))).text


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_stands_out_from_the_paper(scheme: str) -> None:
    style = read(html_page(dossier(*SWEEP))).all("style")[0].text
    blocks = dict(zip(["light", "dark", "print"], re.findall(r":root \{([^}]*)\}", style), strict=True))
    colors = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    paper = _luminance(colors["paper"])
    for name in ("ink", "muted", "link", "leaks", "partly", "nothing", "unknown"):
        low, high = sorted((paper, _luminance(colors[name])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def _luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
