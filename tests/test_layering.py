"""The import lines tell the architecture: which folders may know of sockets, threads, clocks and tensors (design, Folders)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "zpala"
FILES = sorted(PACKAGE.rglob("*.py"))

PURE = {
    "zmq",
    "torch",
    "threading",
    "time",
    "asyncio",
    "socket",
    "zpala.rl",
    "zpala.node",
    "zpala.tools",
    "zpala.cli",
    "zpala.config",
}
NEVER = {
    "rl": {"zmq", "msgpack", "threading", "zpala.gossip", "zpala.sim", "zpala.node", "zpala.tools", "zpala.cli"},
    "gossip": PURE | {"zpala.sim"},
    "sim": PURE,
    "node": {"zpala.sim", "zpala.tools", "zpala.cli"},
    "tools": {"zmq", "zpala.cli"},
    "": {"zmq", "msgpack"},  # the modules beside the folders
}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
UNSAFE_NAMES = {"recv_pyobj", "send_pyobj", "recv_serialized"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "base", "core", "manager", "misc"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import anywhere in the file; ``from a import b`` counts as a and as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def folder(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def is_within(module: str, parents: set[str]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def test_the_folders_are_the_ones_with_rules() -> None:
    assert {folder(path) for path in FILES} == set(NEVER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_what_its_folder_must_not_know(path: Path) -> None:
    wrong = [(line, module) for line, module in imports(path) if is_within(module, NEVER[folder(path)] | UNSAFE_MODULES)]
    assert not wrong


@pytest.mark.parametrize(
    "name", ["proxy.py", "proxy_loop.py", "links.py", "frames.py", "resolver.py", "security.py", "keys.py", "sockets.py"]
)
def test_the_proxy_and_its_parts_never_import_torch(name: str) -> None:
    assert not [line for line, module in imports(PACKAGE / "node" / name) if is_within(module, {"torch", "zpala.rl"})]


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    for name in ("cli.py", "config.py", "config_source.py", "exit_codes.py", "__init__.py", "__main__.py"):
        for node in ast.parse((PACKAGE / name).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                heavy = {"torch", "zmq", "gymnasium", "ale_py", "zpala.rl", "zpala.node", "zpala.tools"}
                assert not [module for module in modules if is_within(module, heavy)], f"{name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_and_no_secret_is_copied(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in UNSAFE_NAMES, f"{path}:{node.lineno}"
            dotted = ast.unparse(node)
            assert dotted not in {"torch.load", "os.environ.copy"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", [path for path in FILES if folder(path) in ("gossip", "node")], ids=lambda path: path.stem)
def test_protocol_code_never_reads_the_wall_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"time.time", "datetime.now", "datetime.datetime.now"}, f"{path}:{node.lineno}: use time.monotonic()"


def test_modules_are_named_by_nouns_of_the_domain() -> None:
    assert not [path for path in FILES if path.stem in VAGUE_NAMES]


def test_every_module_opens_by_saying_what_it_owns() -> None:
    silent = [path for path in FILES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent
