"""Which files of a repository make up one SAE, and which SAEs of a release are meant.

    gpt2-small-res-jb                                   all of a release
    gemma-scope-2b-pt-res/layer_20/width_65k            those whose directories have these names
    gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71          one SAE

Where several SAEs of a release write one site, the narrowest are taken, of those the one whose
average L0 is nearest to 100 (Gemma Scope 2: medium), and one without an affine skip connection.
"""

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from gossamer.errors import FormatError, GossamerError
from gossamer.interop.formats import FORMATS
from gossamer.interop.releases import Release, near_names
from gossamer.interop.room import Sites
from gossamer.sites import parse_site

_LAYER = re.compile(r"(?:^|/)layer_(\d+)\.safetensors$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One SAE, or one set, in a repository."""

    folder: str
    """Its directory; "" is the whole repository."""

    files: tuple[str, ...]
    """Its files, with their directories."""

    site: Sites = None
    """Site to read it with; None believes the files."""

    center: bool | None = None
    """As of a release."""


def places_of(release: Release, files: list[str], rest: str, site: Sites = None) -> list[Place]:
    """Which of a repository's files to take: one place for each site that is written, in the order
    of the forward pass, or only that which writes `site`. FormatError when none fits."""
    if release.sites is None:
        return places_under(files, "", release.repository, site)
    pattern = _pattern(release.folder)
    by_site: dict[str, list[Place]] = {}
    for place in places_in(files):
        match = pattern.fullmatch(place.folder)
        if match is None or not set(rest.split("/") if rest else ()) <= {*place.folder.split("/")}:
            continue
        read, written = (each.format(**match.groupdict()) for each in release.sites)
        if site in (None, written, (read, written)):
            said = None if release.files_say_sites else (read, written)
            kept = replace(place, site=said, center=release.center)
            by_site.setdefault(written, []).append(kept)
    if not by_site:
        said = "" if site is None else f" for {site}"
        raise FormatError(
            f"{release.repository} has no {release.folder}{said}"
            f"{f' with {rest} in its name' if rest else ''}; give one of "
            f"{', '.join(sorted(_folders(files))[:5]) or 'nothing'}, …"
        )
    ordered = sorted(by_site, key=lambda name: parse_site(name).order)
    return [min(by_site[written], key=_preference) for written in ordered]


def places_in(files: list[str]) -> list[Place]:
    """All SAEs of a repository by the names of their files, whatever their format."""
    folders: dict[str, list[str]] = {}
    for file in files:
        for parent in PurePosixPath(file).parents:
            folders.setdefault("" if parent.name == "" else str(parent), []).append(file)
    found = []
    for folder, members in sorted(folders.items()):
        inside = {file: file.removeprefix(f"{folder}/") for file in members}
        for form in FORMATS:
            if form.files == ("*.pt",):
                continue  # a .pt can be anything: it is loaded by its own name
            needed = [[f for f, name in inside.items() if _fits(name, p)] for p in form.files]
            if all(needed):
                also = [file for file, name in inside.items() if name in form.also]
                chosen = tuple(sorted({file for each in needed for file in each} | {*also}))
                found.append(Place(folder=folder, files=chosen))
                break
    return found


def places_under(files: list[str], rest: str, repository: str, site: Sites = None) -> list[Place]:
    """The SAEs of a repository in or below a directory, or the one in a file; with `site`, where
    there are several, those that have it in their directory's name. FormatError when none is."""
    if rest in files:
        beside = [str(PurePosixPath(rest).with_name(name)) for name in ("config.json", "cfg.json")]
        return [Place(folder=rest, files=(rest, *(file for file in beside if file in files)))]
    places = [p for p in places_in(files) if f"{p.folder}/".startswith(f"{rest}/") or not rest]
    if len(places) > 1 and site is not None:
        written = site if isinstance(site, str) else site[1]
        named = [p for p in places if written in PurePosixPath(p.folder).parts]
        places = named or places
    places = [_narrowed(place, site, repository) for place in places]
    if not places:
        near = near_names(rest, (place.folder for place in places_in(files)))
        near = near or ", ".join(place.folder for place in places_in(files)[:5])
        raise FormatError(
            f"The hub's {repository} holds no SAE in {rest or 'any directory'} of a known format; "
            f"near names: {near or 'none'}."
        )
    return places


def check_one(places: list[Place], name: str) -> Place:
    """The one place of a list. GossamerError that lists some when there are several SAEs."""
    layers = [file for file in places[0].files if _LAYER.search(file)]
    if len(places) == 1 and len(layers) < 2:
        return places[0]
    some = [place.folder for place in places[:4]] if len(places) > 1 else layers[:4]
    raise GossamerError(
        f"{name} has {max(len(places), len(layers))} SAEs ({', '.join(some)}, …); name one with "
        "site= or by its directory, or take all with load_saes."
    )


def _narrowed(place: Place, site: Sites, repository: str) -> Place:
    """Of a set in one directory, the layer that `site` is of."""
    layers = [file for file in place.files if _LAYER.search(file)]
    if site is None or len(layers) < 2:
        return place
    wanted = str(parse_site(site if isinstance(site, str) else site[1]).layer)
    kept = [file for file in layers if _LAYER.findall(file) == [wanted]]
    if not kept:
        raise FormatError(
            f"The hub's {repository} has no layer_{wanted}.safetensors for {site}; it has "
            f"{', '.join(layers[:3])} and so on."
        )
    others = tuple(file for file in place.files if file not in layers)
    return replace(place, files=(*others, *kept))


def _pattern(template: str) -> re.Pattern[str]:
    named = {r"\{layer\}": r"(?P<layer>\d+)", r"\{kind\}": r"(?P<kind>[^/]+)", r"\*": "[^/]*"}
    text = re.escape(template)
    for escaped, pattern in named.items():
        text = text.replace(escaped, pattern)
    return re.compile(text)


def _preference(place: Place) -> tuple[float, float, bool, str]:
    width = re.search(r"width_(\d+)([km]?)|_(\d+)$", place.folder)
    l0 = re.search(r"l0_(\d+|\w+?)(_affine)?$", place.folder)
    size = float(width[1] or width[3]) if width else 0.0
    size *= {"k": 1e3, "m": 1e6}.get(width[2] or "", 1.0) if width else 1.0
    words = {"medium": 0.0, "small": 1.0, "big": 2.0}
    distance = 0.0
    if l0:
        distance = abs(float(l0[1]) - 100) if l0[1].isdigit() else words.get(l0[1], 3.0)
    return size, distance, "_affine" in place.folder, place.folder


def _fits(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _folders(files: list[str]) -> list[str]:
    return [place.folder for place in places_in(files)]
