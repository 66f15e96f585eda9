"""What sphinx is told; scripts/docs runs it over a copy of the pages, warnings as errors."""

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

project = "ptunnel"
author = "The ptunnel developers"
release = re.search(r'^__version__ = "(.+)"', (ROOT / "tunnel" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]

extensions = ["myst_parser"]
myst_heading_anchors = 6
myst_links_external_new_tab = False
html_theme = "furo"
html_title = f"ptunnel {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
smartquotes = False
html_copy_source = False
html_show_sphinx = False
html_use_index = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
templates_path: list[str] = []
# The headings of some pages begin at a lower level than sphinx has it, as they are read by themselves too.
suppress_warnings = ["myst.header"]
