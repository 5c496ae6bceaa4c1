"""How Sphinx makes the site: `make docs` runs it, and opens nothing on the network."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent.resolve()
sys.path[:0] = [str(DOCS.parent), str(DOCS)]  # the package beside these pages, and the extensions in site/

from site_extensions.cache import notebook_cache  # noqa: E402

import modfast  # noqa: E402

project = "modfast"
author = copyright = "The modfast developers"
release = version = modfast.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "site_extensions.downloads",
    "site_extensions.mathml",
    "site_extensions.outside",
    "site_extensions.public_names",
]
exclude_patterns = ["site_extensions", "pictures"]

# Pages. GitHub shows the same files, so they hold Markdown that both understand.
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Notebooks: run when a page or the package changes; a cell that fails stops the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(notebook_cache(DOCS.parent))
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_show_tb = True
nb_merge_streams = True

# The reference, from the docstrings.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A reference of ours that leads nowhere is an error; those to other projects would need the network.
nitpicky = True

nitpick_ignore_regex = [
    (r"py:.*", r"(?!modfast).*"),
    # Types that users meet, but never make or name.
    (
        r"py:class",
        r"modfast\.(circuits\.units\.unit_circuit\.AblatedModel|layers\.layer\.Layer|network\.ablation\.Ablation"
        r"|network\.batch_norms\.BatchNorm|weights\.file_weights\.FoundWeight)",
    ),
]

html_theme = "furo"
html_title = "modfast"
html_static_path = ["static"]
html_css_files = ["modfast.css"]
html_js_files = ["search_from_files.js"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
