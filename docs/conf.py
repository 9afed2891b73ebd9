"""The site of the documentation: ``python -m sphinx -W -b html docs docs/_build/html``."""

import sys
from pathlib import Path

import plugrad

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "plugrad"
author = "The plugrad authors"
version = release = plugrad.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "command_help",
    "kernel_pages",
    "links",
    "mathml",
    "project_pages",
    "step_times",
]
exclude_patterns = ["_build", "_extensions"]

# A name in single backticks is a link if it is documented, else code.
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings describe the types
# The bridges need libraries that need not be installed.
autodoc_mock_imports = ["jax", "torch", "plugrad.bridges._torch_operators"]
numpydoc_show_class_members = False

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"  # the outputs are those of this build, not the stored ones
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # numba says there what it compiles
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = "plugrad"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "five-minutes": []}
