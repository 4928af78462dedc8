"""The parts of a report that show what was measured: figure, pictures, numbers, what attackers held, how to repeat it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from xml.etree.ElementTree import Element

from fedveil.attacks.audit.figures import mse_text
from fedveil.fl.messages import ThreatModel
from fedveil.orchestrator.config.yaml import dump
from fedveil.orchestrator.listing import KINDS
from fedveil.orchestrator.report.columns import ABSENT, explained, filled
from fedveil.orchestrator.report.dossier import Dossier, Picture
from fedveil.orchestrator.report.groups import TrialGroup
from fedveil.orchestrator.report.html.markup import Child, listing, node, table
from fedveil.orchestrator.report.html.settings import own, shared
from fedveil.orchestrator.report.html.words import named
from fedveil.orchestrator.report.marks import MARKS, marks_of
from fedveil.orchestrator.report.matched import matched_line
from fedveil.orchestrator.report.pareto import front_of
from fedveil.orchestrator.report.references import reference_groups
from fedveil.orchestrator.report.tiers import MEANINGS, Tier, errors_by_tier, tier_of

_GRANTS: Mapping[str, str] = {
    "labels": "the classes",
    "auxiliary_data": "images of the same kind",
    "defense_algorithm": "the protection's code",
    "defense_modules": "what it has learnt",
    "trained_images": "what the client trained on",
}
"""What a threat model may grant, in words."""


def pictures(dossier: Dossier) -> list[Child]:
    """Show what came back as images, or say why there are none."""
    if dossier.forbidden:
        return [
            node(
                "p",
                "There are none: this experiment is set to hand on no pictures (",
                _code("tracking.images: none"),
                ").",
            )
        ]
    if not dossier.pictures:
        return [
            node(
                "p",
                "The record holds none. With images of your own none are recorded, unless ",
                _code("tracking.images"),
                " lets them.",
            )
        ]
    return [_figure(picture) for picture in dossier.pictures]


def _figure(picture: Picture) -> Element:
    what = (
        f"under {'no protection' if picture.title == 'none' else picture.title}"
        if picture.title
        else "under each protection"
    )
    text = (
        f"The first attacked images {what}, one per column. First row: the originals. Below: what the client trained on, and"
        " what the attacks made of its updates, each with its mean squared error (MSE)."
    )
    data = base64.b64encode(picture.png).decode("ascii")
    return node("figure", node("img", src=f"data:image/png;base64,{data}", alt=text), node("figcaption", text))


def numbers(dossier: Dossier, settings: Mapping[str, TrialGroup]) -> list[Child]:
    """Show the table of all settings with what it means, and the trials that did not finish."""
    groups = list(settings.values())
    references, front = reference_groups(dossier.rows), front_of(dossier.rows)
    marks = {place: marks_of(row, front, alone=len(groups) == 1) for place, row in settings.items()}
    columns = filled(groups)
    shown: list[Child] = []
    if groups:
        lines: list[list[Child]] = [
            [" ".join([*(mark.sign for mark in marks[place]), named(row)]), *(column.full(row) for column in columns)]
            for place, row in settings.items()
        ]
        lines += [[row.name, *(column.full(row) for column in columns)] for row in references]
        made = table(
            ["trials", *(column.heading for column in columns)],
            lines,
            caption="Every setting that was tried, a line each; its trials under several seeds are one.",
            numbers=True,
        )
        for line, place in zip(made.iter("tr"), ["", *settings], strict=False):
            if place:
                line.set("id", place)
        shown.append(made)
        given = {mark for those in marks.values() for mark in those}
        shown.append(listing(f"{mark.sign} {mark.meaning}" for mark in MARKS if mark in given))
        shown.append(node("p", " ".join(explained(groups, columns, references)), class_="quiet"))
        matched = matched_line(dossier.rows, dossier.records)
        shown.append(node("p", f"{matched}.") if matched else None)
    unfinished = [row for row in dossier.rows if not row.finished]
    if unfinished:
        shown.append(node("h3", "Trials that did not finish"))
        shown.append(listing(f"{row.name} ({row.status.lower()}){_reason(row.error)}" for row in unfinished))
    return shown


def _reason(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return f": {lines[0]}" if lines else ""


def granted_section(granted: Mapping[str, ThreatModel], groups: Sequence[TrialGroup]) -> list[Child]:
    """Show what each attack held beside the update, and how near attackers of each tier came."""
    if not granted:
        return [
            node("p", "The scores of single images are not in the record, and with them what the attacks were granted.")
        ]
    about = {entry.name: entry for entry in KINDS["attacks"].entries()}
    lines: list[list[Child]] = []
    for label, threat_model in granted.items():
        held = asdict(threat_model)
        entry = about.get(label) or about.get(label.rpartition("_")[0])
        lines.append(
            [
                label,
                str(tier_of(threat_model)),
                *("yes" if held[grant] else ABSENT for grant in _GRANTS),
                entry.summary if entry else "an attack of the experiment's own",
            ]
        )
    tiers = [tier for tier in Tier if any(tier is tier_of(one) for one in granted.values())]
    errors: list[list[Child]] = []
    for row in groups:
        nearest = errors_by_tier(row, granted)
        cells = (nearest.get(tier) for tier in tiers)
        errors.append([named(row), *(f"{mse_text(one[0])} ({one[1]})" if one else ABSENT for one in cells)])
    return [
        node(
            "p",
            "Each attacker holds what a client sent, and the model that the server had sent before. What it knows beyond"
            " that is its tier; the headline is the worst of them.",
        ),
        listing(node("span", node("strong", str(tier)), f": {MEANINGS[tier]}") for tier in tiers),
        table(
            ["attack", "tier", *_GRANTS.values(), "what it does"],
            lines,
            caption="What each attack was granted beside the update.",
        ),
        table(
            ["trials", *map(str, tiers)],
            errors,
            caption="Mean squared error of the attack that came nearest, by tier; smaller is nearer to the original.",
            numbers=True,
        ),
    ]


def repeating(dossier: Dossier) -> list[Child]:
    """Say what it takes to get the same numbers again: settings and versions."""
    versions = dict.fromkeys(one.versions for one in dossier.evidence if one.versions)
    shown: list[Child] = [
        node("p", "The same settings, data, seed and versions give the same numbers. Software: ")
        if versions
        else node("p", "Which versions ran was not recorded by the fedveil of that day.")
    ]
    shown.append(listing(_code(text) for text in versions))
    if not dossier.settings:
        return [*shown, node("p", "The record holds no settings.")]
    common = shared(dossier.settings)
    shown += [
        node("p", "Settings that all trials share, as they would stand in an experiment file:"),
        node("pre", node("code", dump(common)), tabindex="0"),
    ]
    beyond: list[list[Child]] = []
    for row, one in zip(dossier.rows, dossier.evidence, strict=True):
        differing = own(one.settings, common)
        if differing:
            beyond.append([row.name, _code(dump(differing).strip())])
    if beyond:
        shown.append(table(["trial", "its own settings"], beyond, caption="In what the trials differ."))
    return shown


def _code(text: str) -> Element:
    return node("code", text)
