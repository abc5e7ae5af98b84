"""A hook of MkDocs: the pages that lie elsewhere, or follow from what the package has.

The reference lists the package's public names by themselves, and fails where one has no page.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

import gpuconv
from gpuconv import distributed

DOCS = Path(__file__).parents[1]

# Pages of the reference, with the modules whose public names they show.
REFERENCE = {
    "api/convolution.md": ("Convolution", "conv conv1d conv3d conv_transpose columns"),
    "api/pooling.md": ("Pooling", "pool pool1d pool3d adaptive global_pool lp_pool unpool upsample"),
    "api/networks.md": ("Networks", "nn training distributed"),
    "api/settings.md": ("Settings and checks", "config offload explain measure buffers testing"),
}
# What the decorator of every public function adds to its parameters.
LIKE = "Each function also takes `like=`, an array of another library: results are then of its kind.\n\n"

DEFINITIONS = "api/definitions.md"

# Files beside docs/ that its pages link to, and the pages made of them.
ELSEWHERE = {
    "../profiling/README.md": "profiling.md",
    "../profiling/results/bench-cpu.md": "results.md",
    "../profiling/results/bench-cpu.png": "figures/bench.png",
    "../profiling/results/profile-modern-cpu-time.png": "figures/profile-time.png",
    "../profiling/results/profile-modern-cpu-roofline.png": "figures/profile-roofline.png",
}


def on_config(config):
    """Put the swap-in guides into the navigation: as many as there are."""
    guides = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("swap_in/*.md"))
    if guides:
        config.nav.insert(2, {"Swap it in": guides})
    return config


def on_files(files, config):
    """Add the reference and what lies elsewhere."""
    for uri, content in reference().items():
        files.append(File.generated(config, uri, content=content))
    for place, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str((DOCS / place).resolve())))
    return files


def on_page_markdown(markdown, page, **_):
    """Let links to files beside docs/, which lead there in the repository, lead to their pages or nowhere."""

    def link(match):
        text, target, section = match.groups(default="")
        place = ((DOCS / page.file.src_uri).parent / target).resolve()
        pages = {(DOCS / beside).resolve(): uri for beside, uri in ELSEWHERE.items()}
        if place.is_relative_to(DOCS):
            pages[place] = place.relative_to(DOCS).as_posix()
        up = "../" * page.file.src_uri.count("/")
        return f"[{text}]({up}{pages[place]}{section})" if place in pages else text

    return re.sub(r"\[([^]]+)\]\((\.\./[^)#]+)(#[^)]+)?\)", link, markdown)


def reference():
    """Return the reference's pages by their places.

    Raises
    ------
    LookupError
        Where a public name belongs to no page.
    """
    names = {
        name: getattr(gpuconv, name) for name in gpuconv.__all__ if name not in ("config", "nn", "testing")
    }
    names |= {f"nn.{name}": getattr(gpuconv.nn, name) for name in gpuconv.nn.__all__ if name not in names}
    names |= {f"distributed.{name}": getattr(distributed, name) for name in distributed.__all__}
    pages = {}
    for uri, (title, modules) in REFERENCE.items():
        own = {f"gpuconv.{module}" for module in modules.split()}
        shown = [name for name, value in names.items() if home(value) in own]
        for name in shown:
            del names[name]
        if uri == "api/settings.md":
            shown = ["config.Config", *shown, "testing.check_gradients", "testing.GradientReport"]
        note = LIKE if uri in ("api/convolution.md", "api/pooling.md") else ""
        pages[uri] = f"# {title}\n\n{note}" + "".join(f"::: gpuconv.{name}\n\n" for name in shown)
    if names:
        raise LookupError(f"these public names are on no page of the reference: {', '.join(names)}")
    return {
        **pages,
        DEFINITIONS: "# The definitions\n\n::: gpuconv.reference\n    options: {show_root_heading: false}\n",
    }


def home(value):
    """Return the module that a name comes from, or the package where that is one of nn's or training's."""
    module = value.__module__
    return ".".join(module.split(".")[:2])
