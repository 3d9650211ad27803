"""The options of the policy are the same in every command that runs one, and become one `PolicySource`."""

from __future__ import annotations

from dataclasses import fields

import pytest
import tyro

from mist_interp.cli import collect, eval
from mist_interp.cli.policy_options import PolicyOptions
from mist_interp.data.policy_source import PolicySource


@pytest.mark.parametrize("command", [collect.Command, eval.Command])
def test_a_command_takes_them(command: type[PolicyOptions], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--device", "cuda", "--dtype", "float16", "--attn-implementation", "eager", "--unnorm-key", "k"]
    options = tyro.cli(command, args=["--out", "x", "--model", "me/policy", *given])
    assert options.policy() == PolicySource("me/policy", "cuda", "float16", "eager", "k")
    assert tyro.cli(command, args=["--out", "x"]).policy() == PolicySource("mini")
    with pytest.raises(SystemExit):
        tyro.cli(command, args=["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        '"mini-base" (in the package), a folder',
        "default: the CPU",
        "default: sdpa",
        "several the suite's",
    ):
        assert text in said


def test_they_are_those_of_a_policy_source() -> None:
    names = [field.name for field in fields(PolicyOptions)]
    assert names == ["model", *(field.name for field in fields(PolicySource)[1:])]
    with pytest.raises(KeyError, match="mini"):
        PolicyOptions(model="mimi").policy()
