"""Builds the documentation from the docstrings: python .docs/build.py

The pages in the folder `site` need no network; open site/index.html.
"""

import re
import sys
import warnings
from functools import cached_property
from inspect import cleandoc
from pathlib import Path
from pkgutil import iter_modules

import pdoc
import pdoc.docstrings
import pdoc.render
import pdoc.render_helpers
from torch import nn

import hf_focal


SITE = Path(__file__).parents[1] / "site"
PUBLIC_MODULES = [f"hf_focal.{module.name}" for module in iter_modules(hf_focal.__path__) if module.name[0] != "_"]
HUGGING_FACE = "https://huggingface.co/docs"
OTHER_DOCUMENTATION = {
    "transformers.Trainer": f"{HUGGING_FACE}/transformers/main_classes/trainer",
    "transformers.TrainingArguments": f"{HUGGING_FACE}/transformers/main_classes/trainer",
    "transformers.TextClassificationPipeline": f"{HUGGING_FACE}/transformers/main_classes/pipelines",
    "transformers.TokenClassificationPipeline": f"{HUGGING_FACE}/transformers/main_classes/pipelines",
    "huggingface_hub.hf_hub_download": f"{HUGGING_FACE}/huggingface_hub/package_reference/file_download",
    "evaluate.Metric": f"{HUGGING_FACE}/evaluate/package_reference/main_classes",
}
CROSS_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\]")
Modules = dict[str, pdoc.doc.Module]


def build(site: Path = SITE) -> None:
    """Writes a page for the package and for each public module.

    Raises:
        `ValueError`: If a docstring refers to something that is not documented.
    """
    for name in hf_focal.__all__:  # lazy: pdoc looks for them among the attributes
        setattr(hf_focal, name, getattr(hf_focal, name))
    modules = {name: pdoc.doc.Module.from_name(name) for name in PUBLIC_MODULES}
    pdoc.doc.Function.docstring = cached_property(docstring_of)
    pdoc.doc.Function.docstring.__set_name__(pdoc.doc.Function, "docstring")
    convert = pdoc.docstrings.convert

    def convert_with_links(docstring: str, docformat: str, source_file: Path | None) -> str:
        if docstring == cleandoc(nn.Module.__init__.__doc__):  # pdoc shows it for classes without one of their own
            return ""
        return convert(with_links(indented_raises(docstring), modules, source_file), docformat, source_file)

    pdoc.docstrings.convert = convert_with_links
    pdoc.render_helpers.markdown_extensions["latex"] = None
    pdoc.render.configure(docformat="google", footer_text=f"hf_focal {hf_focal.__version__}", show_source=False)
    try:
        pdoc.pdoc("hf_focal", *PUBLIC_MODULES, output_directory=site)
    finally:
        pdoc.docstrings.convert = convert
    for page in site.rglob("*.html"):
        to_root = "../" * (len(page.relative_to(site).parts) - 1)
        html = re.sub(
            r'href="target-([0-9a-f]+)"',
            lambda match: f'href="{resolve(bytes.fromhex(match[1]).decode(), to_root)}"',
            page.read_text("utf-8"),
        )
        page.write_text(without_dead_anchors(html), "utf-8")


def docstring_of(function: pdoc.doc.Function) -> str:
    """The docstring of the function itself, without that of a method of torch or transformers that it overrides."""
    return cleandoc(getattr(function.obj, "__doc__", None) or "")


def indented_raises(docstring: str) -> str:
    """With the lines of "Raises:" that go on with an exception indented, or pdoc would make a bullet of each."""
    lines, section = [], ""
    for line in docstring.splitlines():
        if line.strip() and not line.startswith(" "):
            section = line
        goes_on = section == "Raises:" and line.startswith("    ") and not line.startswith("    `")
        lines.append(f"    {line}" if goes_on else line)
    return "\n".join(lines)


def with_links(docstring: str, modules: Modules, source_file: Path | None) -> str:
    """Replaces [`name`] by a link to its page, and [`~package.name`] by one to the documentation of that package."""

    def link(match: re.Match) -> str:
        is_elsewhere, name = match.groups()
        target = url_elsewhere(name) if is_elsewhere else page_of(name, modules, source_file)
        if target is None:
            raise ValueError(f"{source_file}: {match.group()} is not documented")
        text = name.partition(".")[2] if is_elsewhere else name.removeprefix("hf_focal.")
        # In hexadecimal until the page is written: pdoc would make links of the names in it.
        return f"[`{text}`](target-{target.encode().hex()})"

    return CROSS_REFERENCE.sub(link, docstring)


def url_elsewhere(name: str) -> str | None:
    pages = [page for known, page in OTHER_DOCUMENTATION.items() if f"{name}.".startswith(f"{known}.")]
    return f"{pages[0]}#{name}" if pages else None


def page_of(name: str, modules: Modules, source_file: Path | None) -> str | None:
    """The page of a module, or of what one defines; the module of the docstring goes first."""
    name = name.removeprefix("hf_focal.")
    if f"hf_focal.{name}" in modules:
        return f"hf_focal/{name}.html"
    first = f"hf_focal.{source_file.stem}" if source_file is not None else ""
    for module in sorted(modules, key=lambda module: module != first):
        documented = modules[module].get(name)
        if documented is not None and documented.taken_from[0] == module:
            return f"{module.replace('.', '/')}.html#{name}"
    return None


def resolve(target: str, to_root: str) -> str:
    return target if target.startswith("https://") else f"{to_root}{target}"


def without_dead_anchors(html: str) -> str:
    """Without the links that pdoc makes of words like `float` to members inherited from torch, which it does not show."""
    anchors = {*re.findall(r'id="([^"]+)"', html)}
    return re.sub(
        r'<a href="#([^"]+)">(.*?)</a>', lambda match: match.group() if match[1] in anchors else match[2], html
    )


if __name__ == "__main__":
    warnings.simplefilter("error")
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else SITE)
