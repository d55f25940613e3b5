"""Sphinx's configuration for the site: python -m sphinx -W -b html docs docs/_build/html"""

import re

import charrnn

project = "charrnn"
author = "the charrnn developers"
copyright = "the charrnn developers"  # Sphinx requires the name
version = release = charrnn.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 3  # as on GitHub, so that links to a section work in both places

html_theme = "furo"
html_title = f"charrnn {version}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_use_index = False  # the pages define no index entries
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# For -b linkcheck, the only builder that needs a network. Anchors on GitHub cannot be checked, since scripts make them.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_timeout = 20
linkcheck_retries = 2


def setup(app):
    app.connect("source-read", without_links_to_the_checkout)


def without_links_to_the_checkout(app, page, source):
    """Replace links to files outside docs/, which are not pages of the site, by their text."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])
