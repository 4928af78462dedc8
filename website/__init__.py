"""What the documentation site is made with, beside mkdocs: nothing here is a part of the package."""
