"""Folders that are read and written: what is found in one, what is left out, what can be written.

    found = find_files(Path("MESHES"), (".glb", ".obj"))
    found.files, found.unusable, found.notes()

Links to folders are followed. Hidden files, and what this project wrote itself, are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Folders of operating systems and network drives, hidden there though no dot says so.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
# Hidden folders with copies of what lies beside them, which nobody looks for.
_TOOL_FOLDERS = {".git", ".hg", ".svn", ".dvc", ".datalad"}
# Folders that belong to a data set folder, so nobody looks for meshes there.
_DATA_SET_FOLDERS = {"samples", "inspect"}
# Files that lie beside others and are never meant themselves, so nobody misses them.
_TEXTS = {".csv", ".db", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".pdf", ".rst"}
_TEXTS |= {".toml", ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml"}
TOKENS, TOKEN_SUFFIX = "tokens", ".tokens.npz"  # folder and files of tokens that scripts write
MAX_NAME_BYTES = 255  # of a file, on all common file systems
_UNFINISHED_BYTES = 14  # that `atomic_write` adds to the name of a file, with a process id of seven
_SUFFIXES_SHOWN, _NAMES_SHOWN = 8, 3
_RESERVED = re.compile(
    r'(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?|.*[<>:"|?*\x00-\x1f].*|.*[. ]',
    re.IGNORECASE | re.DOTALL,
)


@dataclass
class FoundFiles:
    """What `find_files` found below `root`; all lists are sorted.

    `unusable` has files and folders that cannot be read, with the reason; the others are left out.
    """

    root: Path
    suffixes: tuple[str, ...]
    files: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)  # files of other suffixes
    hidden: list[Path] = field(default_factory=list)  # files of `suffixes`
    repeated: list[Path] = field(default_factory=list)  # links to folders that are found anyway
    outputs: list[Path] = field(default_factory=list)  # folders and files of this project
    folders: list[Path] = field(default_factory=list)  # not looked into

    def notes(self) -> list[str]:
        """A sentence for each kind of thing that was left out, for the user."""
        by_suffix: dict[str, list[Path]] = {}
        for path in self.others:
            by_suffix.setdefault(path.suffix.lower() or "without suffix", []).append(path)
        most = sorted(by_suffix, key=lambda suffix: (-len(by_suffix[suffix]), suffix))
        kinds = [
            f"{len(by_suffix[suffix]):,} {suffix} ({self._names(by_suffix[suffix], 1)})"
            for suffix in most[:_SUFFIXES_SHOWN]
        ]
        if more := len(most) - len(kinds):
            kinds.append(f"files of {more} more suffixes")
        kinds_read = " ".join(self.suffixes)
        left_out = {
            f"files of other kinds than {kinds_read}: {', '.join(kinds)}": self.others,
            f"hidden files, or in hidden folders{self._listed(self.hidden)}": self.hidden,
            "links to folders that are read anyway, or that hold this one"
            f"{self._listed(self.repeated)}": self.repeated,
            f"what this project wrote{self._listed(self.outputs)}; give such a folder itself to "
            "read it": self.outputs,
            f"sub-folders, which are not looked into{self._listed(self.folders)}": self.folders,
        }
        where = printable(self.root)
        return [f"left out of {where}: {text}" for text, paths in left_out.items() if paths]

    def add_left_out(self, part: FoundFiles) -> None:
        """Takes over what was left out of a folder below this one, to be noted together."""
        self.others += part.others
        self.hidden += part.hidden
        self.repeated += part.repeated
        self.outputs += part.outputs
        self.folders += part.folders

    def _listed(self, paths: list[Path]) -> str:
        return f" ({len(paths):,}): {self._names(paths)}"

    def _names(self, paths: list[Path], shown: int = _NAMES_SHOWN) -> str:
        names = [printable(path.relative_to(self.root)) for path in paths[:shown]]
        return ", ".join(names) + (", ..." if len(paths) > shown else "")


def find_files(
    root: Path,
    suffixes: tuple[str, ...],
    *,
    deep: bool = True,
    beside: Iterable[str] = (),
    leave_out: Path | None = None,
) -> FoundFiles:
    """The files below a folder whose suffix, in any case, is one of `suffixes`.

    Without `deep` only those directly inside. Links are followed, each folder once, under its own
    name where it has one below `root`. Files of the suffixes `beside` and texts are expected there
    and not recorded. `leave_out` is a folder of results. What this project wrote below `root` is
    left out; files that run.py made are read where there is nothing else. An OSError is raised for
    a `root` that cannot be read.
    """
    os.scandir(root).close()
    search = _Search(FoundFiles(root, suffixes), _TEXTS | set(beside), leave_out)
    search.run(deep=deep)
    found = search.found
    if search.generated and found.files:
        found.outputs += search.generated
    found.files += [] if found.files else search.generated
    for paths in (found.files, found.others, found.hidden, found.repeated, found.outputs):
        paths.sort()
    return found


class _Search:
    """The walk of `find_files`."""

    def __init__(self, found: FoundFiles, expected: set[str], leave_out: Path | None) -> None:
        self.found, self._expected = found, expected
        self.generated: list[Path] = []
        self._left_out = None if leave_out is None else os.path.realpath(leave_out)
        self._seen: set[str] = set()  # real paths of folders
        self._links: list[Path] = []

    def run(self, *, deep: bool) -> None:
        top = os.path.realpath(self.found.root)
        self._seen.add(top)
        waiting = [self.found.root]
        while waiting:
            sub_folders = self._read(waiting.pop())
            if not deep:
                self.found.folders += sorted([*sub_folders, *self._links])
                return
            waiting += [path for path in sub_folders if self._is_new(path)]
            # links last, so that a folder is read under its own name
            while self._links and not waiting:
                link = self._links.pop(0)
                holds_root = Path(os.path.realpath(link)) in Path(top).parents
                if not holds_root and self._is_new(link):
                    waiting.append(link)
                else:
                    self.found.repeated.append(link)

    def _is_new(self, folder: Path) -> bool:
        real = os.path.realpath(folder)
        if real in self._seen:
            return False
        self._seen.add(real)
        return True

    def _read(self, folder: Path) -> list[Path]:
        """Records the entries of a folder; returns the sub-folders that are no links."""
        try:
            with os.scandir(folder) as entries:
                names = {entry.name: entry for entry in entries}
        except OSError as e:
            self.found.unusable[folder] = f"the folder cannot be read ({e.strerror or e})"
            return []
        if folder != self.found.root and _is_output(folder, names.keys()):
            if folder.parent != self.found.root or folder.name not in _DATA_SET_FOLDERS:
                self.found.outputs.append(folder)
            return []
        sub_folders: list[Path] = []
        for name in sorted(names):
            path, entry = folder / name, names[name]
            if is_hidden(name):
                self._record_hidden(path)
            elif os.path.isdir(path):  # noqa: PTH112  no exception for a link that leads nowhere
                if self._left_out == os.path.realpath(path):
                    self.found.outputs.append(path)
                else:
                    (self._links if entry.is_symlink() else sub_folders).append(path)
            else:
                self._record_file(path, names.keys())
        return sub_folders

    def _record_file(self, path: Path, names: Iterable[str]) -> None:
        suffix = path.suffix.lower()
        if not os.path.isfile(path):  # noqa: PTH113  as above
            if suffix in self.found.suffixes or path.is_symlink():
                self.found.unusable[path] = _why_no_file(path)
        elif suffix in self.found.suffixes:
            if _is_made_by_run(path, names):
                self.generated.append(path)
            else:
                self.found.files.append(path)
        elif suffix not in self._expected:
            self.found.others.append(path)

    def _record_hidden(self, path: Path) -> None:
        if path.suffix.lower() in self.found.suffixes and path.is_file():
            self.found.hidden.append(path)
        if path.name in _TOOL_FOLDERS:
            return
        for base, _, names in os.walk(path):
            self.found.hidden += [
                Path(base, name)
                for name in names
                if Path(name).suffix.lower() in self.found.suffixes
            ]


def is_hidden(name: str) -> bool:
    """True for the name of a file or folder that is hidden, or belongs to an operating system."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def printable(path: str | Path) -> str:
    """A path as text: bytes of its name that are not UTF-8 are written as in \\xfc."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character of UTF-16, which Windows permits
        return str(path).encode("utf-8", "backslashreplace").decode()


def name_problem(path: Path) -> str:
    """The reason why no table and no printed line can hold a path; "" if they can."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not in UTF-8; rename it, or convert the names with the program convmv"
    return ""


def length_problem(name: str) -> str:
    """The reason why no file can have this name, a suffix included; "" if one can."""
    size = len(os.fsencode(name))
    limit = MAX_NAME_BYTES - _UNFINISHED_BYTES
    if size <= limit:
        return ""
    return (
        f"its output would have a name of {size} bytes, and {limit} is the most: shorten the names "
        "of its file and folders"
    )


def is_reserved(name: str) -> bool:
    """True for a name that no file has on Windows, such as con, or one that ends in a dot."""
    return _RESERVED.fullmatch(name) is not None


def probe_output(folder: Path, flag: str) -> None:
    """Raises ValueError, with the option `flag` in it, where `folder` cannot be made or written.

    Leaves nothing behind: folders that it makes for the test are removed.
    """
    made: list[Path] = []
    try:
        if problem := name_problem(folder):
            raise ValueError(f"{flag} {printable(folder)} cannot be used: {problem}")
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                path.mkdir(exist_ok=True)  # unless another process was faster
                made.append(path)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        reason = "there is a file of that name" if _is_file(e) else e.strerror or e
        raise ValueError(
            f"{flag} {folder} cannot be written ({reason}): choose another folder, or change the "
            "rights of this one"
        ) from e
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # another process writes there already
                path.rmdir()


def _is_file(error: OSError) -> bool:
    return isinstance(error, FileExistsError | NotADirectoryError)


def _why_no_file(path: Path) -> str:
    if path.is_symlink():
        return f"it is a link to {printable(os.readlink(path))}, which is not there"  # noqa: PTH115
    return "it is no regular file, or may not be read"


def _is_output(folder: Path, names: Iterable[str]) -> bool:
    """True for a folder that a script of this project has written, by the files in it."""
    return (
        "inspect.csv" in names
        or {"report.csv", "report.md", "summary.json"} <= set(names)  # infer_vqvae.py
        or {"rows.csv", "report.md", "summary.json"} <= set(names)  # eval_2d.py, eval_3d.py
        or (folder.name == "samples" and "settings.json" in names)
    )


def _is_made_by_run(path: Path, names: Iterable[str]) -> bool:
    """True for a mesh, preview or tokens that run.py wrote, by the record beside the mesh.

    `names` are those of the files beside `path`.
    """
    record = path.with_suffix(".json")
    if path.name.endswith(TOKEN_SUFFIX) and path.parent.name == TOKENS:
        record = path.parent.parent / f"{path.name.removesuffix(TOKEN_SUFFIX)}.json"
    elif record.name not in names:
        return False
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"gpt_type", "seed"} <= content.keys()


def repeated_by_case(names: Iterable[str]) -> list[str]:
    """Names that differ in case alone from another one, which Windows and macOS take for one."""
    names = list(names)
    count = Counter(name.casefold() for name in names)
    return [name for name in names if count[name.casefold()] > 1]
