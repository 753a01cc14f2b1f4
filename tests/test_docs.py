"""The documents: links lead somewhere, and commands have flags that exist."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from options.edit_options import EditOptions
from options.evaluate_options import EvaluateOptions
from options.test_options import EncoderOptions, TestOptions
from options.train_options import TrainOptions

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PARSERS: dict[str, Callable] = {
    "train.py": TrainOptions().parse,
    "test.py": TestOptions().parse,
    "encode_features.py": EncoderOptions().parse,
    "precompute_feature_maps.py": EncoderOptions().parse,
    "evaluate.py": EvaluateOptions().parse_runs,
    "edit.py": EditOptions().parse,
}


def commands(document: Path) -> list[list[str]]:
    """The words of each command in a document's bash blocks and in its inline code."""
    text = document.read_text()
    fenced = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    blocks = [block for language, block in fenced if language in ("", "bash")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += [code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith("python ")]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


class Parsed(BaseException):
    """The flags have been parsed."""


def assert_parsed(command: Callable[[], object], arguments: list[str]) -> None:
    """The command takes these arguments. It is stopped after its parser."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: object) -> None:
        _, unknown = parse(parser, *given)
        assert not unknown or "train_step" in sys.argv[0], unknown  # which passes train.py's on
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        patch.setattr(sys, "argv", ["command", *arguments])
        patch.setattr("torch.cuda.is_available", lambda: True)  # which this machine may not have
        try:
            command()
        except Parsed:
            return
        except SystemExit as ended:
            assert ended.code == 0 and "--help" in arguments, arguments


def prose(document: Path) -> str:
    """A document's text without its code blocks."""
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names by which links reach a document's headings (GitHub's rule)."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", prose(document)):
        if "://" not in target:
            path = document.parent / target if target else document
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables(document: Path) -> None:
    """Each has a line of dashes below its header, and as many cells in each row."""
    text = re.sub(r"`[^`\n]*`", "code", prose(document))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, dashes, *rows = table.splitlines()
        assert re.fullmatch(r"\|( :?-+:? \|)+", dashes), header
        assert {row.count("|") for row in (header, dashes, *rows)} == {header.count("|")}, header


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_are_where_documents_say(document: Path) -> None:
    for name, file in re.findall(r"`(\w+)` (?:in|of)\s+`([\w/]+\.py)`", document.read_text()):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{name} in {file}"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # runpy's, for what tests import
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command's flags are parsed, as far as that goes without a run; scripts exist."""
    if document.name == "editor.md":
        pytest.importorskip("playwright", reason="needs requirements-test.txt")  # screenshots
    monkeypatch.setattr("options.base_options.gpu_list", lambda text: [])
    for words in commands(document):
        scripts = [word for word in words if word.endswith((".py", ".sh"))]
        modules = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"]
        for module in modules:
            if module.split(".")[0] in ("data", "benchmarks", "editor", "scripts"):
                arguments = words[words.index(module) + 1 :]
                assert_parsed(lambda m=module: runpy.run_module(m, run_name="__main__"), arguments)
        if not scripts:
            continue
        if scripts[0] == "prepare_cityscapes.py":
            path, arguments = str(ROOT / scripts[0]), words[words.index(scripts[0]) + 1 :]
            assert_parsed(lambda path=path: runpy.run_path(path, run_name="__main__"), arguments)
            continue
        assert (ROOT / scripts[0]).is_file(), words
        parse = PARSERS.get(scripts[0])
        arguments = words[words.index(scripts[0]) + 1 :]
        if parse is None or "..." in arguments or "--help" in arguments:
            continue
        if any(flag.startswith("--style") or flag == "--all_styles" for flag in arguments):
            arguments.append("--instance_feat")  # which opt.json would set
        parse(arguments)


def test_every_module_has_a_line_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("models/*.py")]:
        assert path.name == "__init__.py" or path.name in text, path


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda p: p.name)
def test_scripts_are_valid(script: Path) -> None:
    """The shell accepts them, and the flags they give to the commands exist."""
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = re.sub(r"\\\n", " ", script.read_text())
    if "multigpu" in script.name:  # else torchrun starts as many processes on a CPU
        assert "--gpu_ids 0,1,2,3,4,5,6,7 " in text
    found = re.findall(r"(?:python|torchrun.*?) (train|test)\.py ([^\n]*?)\"\$@\"", text)
    for command, arguments in found:
        words = [word for word in shlex.split(arguments) if word != "exec"]
        parser = {"train": TrainOptions, "test": TestOptions}[command]()
        if "--gpu_ids" in words:  # this machine may have none
            del words[words.index("--gpu_ids") : words.index("--gpu_ids") + 2]
        parser.parse(words)


def test_quickstart_refuses_unknown_arguments() -> None:
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "quickstart.sh", "--nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "usage" in done.stderr


@pytest.mark.parametrize("command", ["train.py", "test.py", "encode_features.py"])
def test_help(command: str) -> None:
    done = run_command(command, "--help")
    assert done.returncode == 0 and "--label_nc" in done.stdout
