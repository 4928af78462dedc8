"""A report to hand on: one page that needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element

from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.report.dossier import Dossier
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.html.chart import chart
from fedveil.orchestrator.report.html.findings import Finding, Level, finding, settings_to_answer_for
from fedveil.orchestrator.report.html.limits import not_known, not_tested
from fedveil.orchestrator.report.html.markup import Child, listing, node, written
from fedveil.orchestrator.report.html.sections import granted_section, numbers, pictures, repeating
from fedveil.orchestrator.report.html.settings import values_of
from fedveil.orchestrator.report.html.words import called, counted, joined
from fedveil.orchestrator.report.references import UNDEFENDED, federating_line
from fedveil.orchestrator.report.tiers import granted_to

_ANSWERS: Mapping[Level, str] = {
    Level.LEAKS: "Images came back, or were recognised, with {names}.",
    Level.PARTLY: "More came back than a guess tells, though not whole images, with {names}.",
    Level.NOTHING: "The attacks that were tried found hardly more than a guess tells with {names}. That is no proof that"
    " there is nothing to find.",
    Level.UNKNOWN: "What comes back with {names} is not known yet.",
}
_CLASSES = {Level.LEAKS: "leaks", Level.PARTLY: "partly", Level.NOTHING: "nothing", Level.UNKNOWN: "unknown"}


def html_page(dossier: Dossier) -> str:
    """Return the report as HTML, with its style, script, figure and pictures inside.

    It asks no server for anything, and its policy forbids it to; its script is the only one that may run. Whatever users
    named is text in it. The same record makes the same page.

    Args:
        dossier: the experiment as recorded.
    """
    groups = sorted(group_seeds(dossier.rows), key=lambda row: (row.defense, row.dial or 0.0, row.name))
    settings = {f"setting-{number}": row for number, row in enumerate(groups, 1)}
    records = [record for those in dossier.records.values() for record in those]
    granted = granted_to(records)
    return written(
        node(
            "html",
            _head(dossier.experiment),
            node(
                "body",
                _header(dossier, groups),
                node(
                    "main",
                    *_section("The question", _question(dossier, records, granted)),
                    *_section("The answer", _answer(dossier)),
                    *_section("Use against protection", _trade_off(dossier, settings)),
                    *_section("What came back, as pictures", pictures(dossier)),
                    *_section("The numbers", numbers(dossier, settings)),
                    *_section("What the attackers were granted", granted_section(granted, groups)),
                    *_section("What is not known", [listing(_open(dossier, groups, records))]),
                    *_section("What was not tested", [listing(not_tested(groups, granted, dossier.settings))]),
                    *_section("To repeat it", repeating(dossier)),
                ),
                node(
                    "footer",
                    node("p", "Made by fedveil from its record of the trials; nothing in it was typed by hand."),
                ),
                node("script", _resource("page.js")),
            ),
            lang="en",
        )
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _head(experiment: str) -> Element:
    digest = base64.b64encode(hashlib.sha256(_resource("page.js").encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    return node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=policy),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", f"{experiment}: what the clients' updates give away"),
        node("style", _resource("page.css")),
    )


def _section(title: str, children: Sequence[Child]) -> list[Child]:
    return [node("section", node("h2", title), *children)]


def _header(dossier: Dossier, groups: Sequence[TrialGroup]) -> Element:
    days = sorted(one.began.date().isoformat() for one in dossier.evidence if one.began)
    when = f"{days[0]} to {days[-1]}" if days and days[0] != days[-1] else days[0] if days else ""
    finished = sum(row.finished for row in dossier.rows)
    unfinished = len(dossier.rows) - finished
    trials = f"{counted(finished, 'trial')} of {counted(len(groups), 'setting')}"
    facts = {
        "Experiment": dossier.experiment,
        "Recorded": when,
        "Images": joined(_params(dossier, "data.name")),
        "Federation": f"{joined(_params(dossier, 'fl.clients'), 'or')} clients,"
        f" {joined(_params(dossier, 'fl.rounds'), 'or')} rounds, model {joined(_params(dossier, 'model.name'), 'or')}",
        "Trials": trials + (f"; {counted(unfinished, 'trial')} did not finish" if unfinished else ""),
    }
    return node(
        "header",
        node("h1", "What do the clients' updates give away of their images?"),
        node(
            "dl",
            *(part for key, value in facts.items() if value for part in (node("dt", key), node("dd", value))),
            class_="facts",
        ),
    )


def _params(dossier: Dossier, key: str) -> list[str]:
    return list(dict.fromkeys(str(row.params[key]) for row in dossier.rows if key in row.params)) or ["?"]


def _question(dossier: Dossier, records: Sequence[PrivacyRecord], granted: Mapping[str, ThreatModel]) -> list[Child]:
    victims = len({(one.seed, one.client, one.victim) for one in records})
    tried = (
        f"To find out, {counted(len(granted), 'attack')} went at what the clients really sent, for"
        f" {counted(victims, 'image')} of theirs."
        if victims
        else "To find out, attacks went at what the clients really sent."
    )
    return [
        node(
            "p",
            "Several sites train a model together. Each keeps its images and sends only what its model learnt from them: an"
            " update. Whoever reads an update, the server or someone who broke into it, can try to rebuild the images from"
            " it. How much comes back, which protection stops it, and what does that cost?",
            class_="lead",
        ),
        node("p", tried),
    ]


def _answer(dossier: Dossier) -> list[Child]:
    found = _findings(dossier)
    if not found:
        return [node("p", "There is none: no trial finished.", class_="lead")]
    by_level = {level: [one for one in found if one.level is level] for level in Level}
    return [
        *(
            node("p", _ANSWERS[level].format(names=joined(called(one.row) for one in those)), class_="lead")
            for level, those in by_level.items()
            if those
        ),
        node(
            "p",
            "Of each protection stands here the setting that let least come back while it kept the model's use (within 5"
            " points of the best accuracy), or else its most accurate one; all settings are in the table below.",
            class_="quiet",
        ),
        *(
            node(
                "div",
                node(
                    "h3",
                    f"{called(one.row)[0].upper()}{called(one.row)[1:]}: ",
                    node("span", str(one.level), class_="level"),
                ),
                listing(one.lines),
                class_=f"finding {_CLASSES[one.level]}",
            )
            for one in found
        ),
        node(
            "p",
            "No trained attacker is a bound: what is written here is what these attacks found, not all that there is.",
        ),
    ]


def _findings(dossier: Dossier) -> list[Finding]:
    rows = settings_to_answer_for(dossier.rows)
    undefended = next((row for row in rows if row.defense == UNDEFENDED), None)
    galleries = values_of(dossier.settings, "audit.gallery")
    gallery = galleries[0] if len(galleries) == 1 and isinstance(galleries[0], int) else None
    return [finding(row, undefended, gallery) for row in rows]


def _trade_off(dossier: Dossier, settings: Mapping[str, TrialGroup]) -> list[Child]:
    drawing = chart(dossier.rows, settings)
    if drawing is None:
        return [node("p", "There is no figure: no finished trial has both an accuracy and a reconstruction error.")]
    return [
        node(
            "figure",
            drawing,
            node(
                "figcaption",
                "Each point is a setting: to the right the model is right more often, further up the best reconstruction is"
                " further off. Point at one, or go to it by the Tab key, for its numbers; follow it to its line in the"
                " table, which holds all that is drawn here.",
            ),
            class_="chart",
        )
    ]


def _open(dossier: Dossier, groups: Sequence[TrialGroup], records: Sequence[PrivacyRecord]) -> list[str]:
    unfinished = sum(not row.finished for row in dossier.rows)
    return not_known(groups, records, failed=unfinished, remark=federating_line(dossier.rows))
