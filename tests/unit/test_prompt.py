"""Rendering prompts: plain templates ourselves, others by jinja2, and task text never as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daemon import prompt
from daemon.prompt import PromptError

VALUES = {"task": {"id": "T1", "title": "{{ role }} {% raw %}"}, "role": "builder"}


def test_a_plain_template_needs_no_jinja2() -> None:
    """Dotted names alone are filled in without the import that costs an attempt most."""
    code = (
        "import sys; from daemon import prompt; "
        "print(prompt.render('do {{ task.id }}', {'task': {'id': 'T1'}}), 'jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "do T1 False\n"


@pytest.mark.parametrize("template", ["{{ task.title }}", "{% if 1 %}{{ task.title }}{% endif %}"])
def test_task_text_is_never_a_template(template: str) -> None:
    """What looks like a template in a title stands in the prompt as it is."""
    assert prompt.render(template, VALUES) == VALUES["task"]["title"]  # type: ignore[index]  # a dict


@pytest.mark.parametrize("template", ["{{ task.gone }}", "{% if 1 %}{{ gone.x }}{% endif %}"])
def test_an_undefined_name_is_an_error(template: str) -> None:
    """A prompt with a hole is not sent to an agent."""
    with pytest.raises(PromptError, match=r"undefined|has no attribute"):
        prompt.render(template, VALUES)


def test_a_broken_template_names_its_line() -> None:
    """The error says where, as for any other file."""
    with pytest.raises(PromptError) as caught:
        prompt.render("a\n{% nope %}", VALUES, "p.md")
    assert caught.value.problems[0].where == "p.md:2"


def test_the_template_is_sandboxed() -> None:
    """A prompt file reaches no internals of Python."""
    with pytest.raises(PromptError):
        prompt.render("{% set x = ''.__class__.__mro__ %}{{ x }}", VALUES)


def test_only_a_prompt_that_was_named_must_be_there(tmp_path: Path) -> None:
    """A role without a prompt of its own gets the one that init would copy, or a general one."""
    missing = str(tmp_path / "builder.md")
    shipped = (Path(prompt.TEMPLATES) / "builder.md.j2").read_text()
    assert prompt.read(missing, "builder", required=False) == shipped
    assert prompt.read(missing, "docs", required=False) == prompt.DEFAULT
    with pytest.raises(PromptError, match="missing"):
        prompt.read(missing, "builder", required=True)
