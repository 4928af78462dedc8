"""Links from pages to files of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import ROOT

from website.repository import LinkError, linked_pages, place_of, site_link, targets, with_links


def test_code_is_no_link() -> None:
    text = "[a](b)\n```python\nx = y[0](c)\n```\n[d](e)\n~~~\n[f](g)\n~~~\n"
    assert list(targets(text)) == ["b", "e"]
    assert with_links(text, str.upper) == text.replace("(b)", "(B)").replace("(e)", "(E)")


@pytest.mark.parametrize(
    ("page", "target", "link"),
    [
        ("docs/guides/gpus.md", "../clusters.md#kubernetes", "../clusters.md#kubernetes"),
        ("docs/guides/gpus.md", "../../examples/audit.py", "../files/examples/audit.py.md"),
        ("docs/index.md", "../README.md", "files/README.md"),
        ("docs/index.md", "images/demo.png", "images/demo.png"),
        ("README.md", "docs/method.md", "../method.md"),
        ("README.md", "docs/images/demo.png", "../images/demo.png"),
        ("README.md", "tune_configs", "tune_configs.md"),
        ("docs/index.md", "https://example.org/a", "https://example.org/a"),
        ("docs/index.md", "#here", "#here"),
    ],
)
def test_a_link_leads_to_the_same_place_on_the_site(page: str, target: str, link: str) -> None:
    assert site_link(page, target) == link


def checkout(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        place = folder / name.replace("__", "/").replace("_md", ".md").replace("_py", ".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return folder


def test_files_are_shown_and_files_that_these_lead_to(tmp_path: Path) -> None:
    root = checkout(
        tmp_path,
        docs__a_md="[b](../B.md) [here](a.md)",
        B_md="[c](tools/c.py)",
        tools__c_py="text = '```'\n",
    )
    pages = linked_pages(root)
    assert list(pages) == ["B.md", "tools/c.py"]
    assert pages["B.md"] == "[c](tools/c.py)"
    assert pages["tools/c.py"].endswith("# tools/c.py\n\n````python\ntext = '```'\n````\n")


def test_a_folder_leads_to_what_is_in_it(tmp_path: Path) -> None:
    root = checkout(tmp_path, docs__a_md="[all](../tools)", tools__c_py="1\n", tools__d_py="2\n")
    (tmp_path / "tools" / "__pycache__").mkdir()
    pages = linked_pages(root)
    assert pages["tools"] == "# tools/\n\n- [c.py](tools/c.py)\n- [d.py](tools/d.py)\n"
    assert set(pages) == {"tools", "tools/c.py", "tools/d.py"}


def test_a_link_into_nothing_is_refused_with_both_ends(tmp_path: Path) -> None:
    root = checkout(tmp_path, docs__a_md="[b](../gone.py)")
    with pytest.raises(
        LinkError, match=r"docs/a\.md: \]\(\.\./gone\.py\) leads to nothing in the repository: gone\.py"
    ):
        linked_pages(root)


def test_all_links_of_ours_lead_somewhere() -> None:
    pages = linked_pages(ROOT)
    assert {"README.md", "CONTRIBUTING.md", "tune_configs/schema.json"} <= set(pages)
    assert all(place_of(path).startswith("files/") for path in pages)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for target in targets(page.read_text(encoding="utf-8")):
            path = target.partition("#")[0]
            if path and ":" not in path:
                assert (page.parent / path).exists(), f"{page}: {target}"
