"""Who may import whom (docs/architecture.md, "One line per file"), read from the import lines."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ["data", "models", "options", "util", "evaluation", "generation", "editor", "benchmarks"]
FORBIDDEN = {  # package: what it must not import
    "util": {"data", "models", "options", "evaluation", "generation", "editor"},
    "data": {"models", "options", "evaluation", "generation", "editor"},
    "models": {"options", "evaluation", "generation", "editor"},
    "evaluation": {"options", "editor"},
    "generation": {"options", "editor"},
    "options": {"editor"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
MODULES = {module_name(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever the import is."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys()


IMPORTS = {name: imported(path) - {name} for name, path in MODULES.items()}


def test_packages_import_only_what_lies_below_them() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if other.split(".")[0] in FORBIDDEN.get(name.split(".")[0], ())
    ]
    assert len(MODULES) > 100 and not wrong


def test_there_are_no_circular_imports() -> None:
    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in sorted(IMPORTS[name]):
                visit(other, (*path, name))
            done.add(name)

    done: set[str] = set()
    for name in IMPORTS:
        visit(name, ())
