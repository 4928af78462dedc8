"""What mkdocs calls while it builds the site (``hooks:`` in mkdocs.yml)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.repository import DOCS, LinkError, linked_pages, place_of, site_link, with_links
from website.settings import tables

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "website" / "assets"
SCHEMA = ROOT / "tune_configs" / "schema.json"
_SETTINGS = re.compile(r"^<!-- settings: (.+) -->$", re.MULTILINE)
_OF_SETTINGS = '<div class="settings" markdown>\n\n{}\n\n</div>'

_shown: dict[str, str] = {}
"""By their place on the site, where pages that show files of the repository come from."""


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add pages for the files that pages link to, and what the site looks like."""
    try:
        pages = linked_pages(ROOT)
    except LinkError as error:
        raise PluginError(str(error)) from error
    for path, text in pages.items():
        _shown[place_of(path)] = path
        files.append(File.generated(config, place_of(path), content=text))
    for asset in sorted(ASSETS.iterdir()):
        files.append(File.generated(config, f"assets/{asset.name}", content=asset.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files into links to their pages, and fill in tables of settings."""
    source = _shown.get(page.file.src_uri, f"{DOCS}/{page.file.src_uri}")
    text = with_links(markdown, lambda target: site_link(source, target))
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return _SETTINGS.sub(lambda found: _OF_SETTINGS.format(tables(schema, found[1])), text)
