"""The command line teaches, refuses clearly, and is instant to ask."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from mist_interp.cli import COMMANDS, main
from mist_interp.cli.eval import parse_numbers
from mist_interp.cli.progress import ProgressDisplay, duration, plain_line, print_summary
from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.data.policy_source import PolicySource
from mist_interp.evaluation.arm_texts import parse_arm
from mist_interp.evaluation.progress import ArmProgress, Progress
from mist_interp.steering.direction import SteeringDirection
from tests.unit.evaluation.test_runner import run


def test_help_lists_every_command_without_heavy_imports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    code = (
        "import sys; from mist_interp.cli import main; main(['--help']);"
        "print([m for m in ('torch', 'mujoco', 'matplotlib', 'tyro') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and "usage: mist" in capsys.readouterr().out


def test_a_reader_may_stop_reading() -> None:
    command = f'{sys.executable} -c \'from mist_interp.cli import main; raise SystemExit(main(["eval", "--help"]))\''
    run = subprocess.run(["sh", "-c", f"{command} | head -1"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage") and run.stderr == ""


def test_a_wrong_command_is_answered_with_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evla"]) == 2
    assert "did you mean 'eval'" in capsys.readouterr().err
    assert main([]) == 2


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "holds no evaluation run" in error and "Traceback" not in error
    assert main(["eval", "--out", str(tmp_path / "x"), "--arms", "stear"]) == 1
    assert "did you mean 'steer'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_eval_loads_the_policy_as_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def stop(*given: Any, **_: Any) -> None:
        seen.append(given[0])
        raise ValueError("far enough")

    monkeypatch.setattr("mist_interp.evaluation.runner.evaluate", stop)
    options = ["--device", "cuda", "--dtype", "bfloat16", "--attn-implementation", "eager"]
    options += ["--unnorm-key", "libero_goal", "--model", "owner/name"]
    assert main(["eval", "--out", str(tmp_path), *options]) == 1
    assert main(["eval", "--out", str(tmp_path)]) == 1
    assert seen == [PolicySource("owner/name", "cuda", "bfloat16", "eager", "libero_goal"), PolicySource("mini")]


@pytest.mark.parametrize(("planned", "errors", "code", "summed"), [(9, 0, 0, False), (9, 1, 1, False), (3, 0, 0, True)])
def test_a_shard_sums_up_only_when_all_are_there(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    planned: int,
    errors: int,
    code: int,
    summed: bool,
) -> None:
    rows = pd.DataFrame({"status": ["ok"] * (3 - errors) + ["error"] * errors})
    said = []

    if summed:
        (tmp_path / "summary.json").touch()

    def summary() -> dict[str, Any]:
        said.append("summary")
        return {"twins": None, "episodes": {"errors": 0}}

    result = SimpleNamespace(planned=planned, episodes=lambda: rows, summary=summary)
    monkeypatch.setattr("mist_interp.evaluation.runner.evaluate", lambda *_, **__: result)
    monkeypatch.setattr("mist_interp.cli.progress.print_summary", lambda summary: None)
    assert main(["eval", "--out", str(tmp_path), "--shard", "0/2", "--no-report"]) == code
    assert bool(said) == summed
    assert ("3 of 9 episodes of the plan are there; mist compare" in capsys.readouterr().out) != summed


def test_eval_refuses_an_unknown_policy_before_the_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys; from mist_interp.cli import main; code = main(['eval', '--out', sys.argv[1], '--model', 'nope']);"
        "print(code, [m for m in ('transformers', 'mujoco', 'pandas', 'sklearn') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "1 []" and "unknown policy (no such folder) 'nope'" in ended.stderr
    assert not (tmp_path / "x").exists()


def test_check_says_what_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--attn-implementation", "eager"]) == 0
    said = capsys.readouterr().out
    assert said.count("  ok  ") == 5 and "bidirectional under eager" in said
    assert main(["check", "no/such/folder"]) == 1
    assert "no/such/folder" in capsys.readouterr().err


def test_describe_lists_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "blocks.*.attn.*"]) == 0
    said = capsys.readouterr().out
    assert "hook_pattern" in said and "[0..3]" in said and "hook_resid_post" not in said
    assert main(["describe", "resid_pots"]) == 1
    assert "resid_post" in capsys.readouterr().err


def test_the_report_command_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert main(["report", str(tmp_path), "--title", "A title"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "report.html" and "<h1>A title</h1>" in page.read_text()


def test_numbers() -> None:
    assert parse_numbers("0-3,7, 9") == (0, 1, 2, 3, 7, 9)
    for bad in ("", "a", "3-", "-3", "1,,2"):
        with pytest.raises(ValueError, match="0-3,7"):
            parse_numbers(bad)


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    folder = tmp_path / "direction"
    SteeringDirection(Site("blocks.1.hook_resid_post"), torch.arange(4.0)).save(folder)
    return folder


def test_arms_by_text(direction: Path) -> None:
    assert parse_arm("none").name == "none"
    steer = parse_arm(f"steer:direction={direction},coef=2.5,when=fired,name=mine")
    assert steer.name == "mine" and steer.config()["coef"] == 2.5 and steer.config()["when"] == "fired"
    one, two = (parse_arm(f"random-direction:direction={direction},coef=2,seed={seed}") for seed in (1, 2))
    assert one.config()["norm"] == two.config()["norm"] == steer.config()["norm"]
    assert one.config()["direction"] != two.config()["direction"]
    assert one.config() == parse_arm(f"random-direction:direction={direction},coef=2,seed=1").config()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("steer", "needs direction, as in steer:direction="),
        ("steer:direction", "write direction=value"),
        ("steer:direction=/nowhere", "direction.json is missing"),
        ("steer:direction=D,coef=much", "coef='much' does not work"),
        ("steer:direction=D,coef=nan", "not a finite number"),
        ("steer:direction=D,when=never", "possible: 'always'"),
        ("steer:direction=D,strength=2", "unknown key of arm 'steer' 'strength'"),
        ("none:coef=1", "unknown key of arm 'none'"),
    ],
)
def test_wrong_arms_are_explained(text: str, match: str, direction: Path) -> None:
    with pytest.raises((ValueError, UnknownName), match=match):
        parse_arm(text.replace("=D", f"={direction}"))


PROGRESS = Progress(
    arms=(ArmProgress("none", 3, 5, 0, 2, (0.2, 0.9)), ArmProgress("steer", 2, 5, 2, 0, (0.0, 1.0))),
    done=5,
    total=10,
    seconds_per_episode=6.25,
    seconds_left=31.2,
)


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    line = plain_line(PROGRESS)
    assert line == "5/10 episodes | SR none 67 % (20–90); steer – | 6.2 s/episode, 31 s left"
    with ProgressDisplay(Console(file=io.StringIO())) as display:
        display.show(PROGRESS)
        display.show(PROGRESS)
    assert capsys.readouterr().err.count("5/10") == 1


def test_progress_in_a_terminal_is_redrawn() -> None:
    buffer = io.StringIO()
    with ProgressDisplay(Console(file=buffer, force_terminal=True, width=100)) as display:
        display.show(PROGRESS)
    assert "3/5" in buffer.getvalue() and "2 errors" in buffer.getvalue()


def test_durations() -> None:
    assert [duration(s) for s in (None, 5, 65, 3725)] == ["?", "5 s", "1 min 05 s", "1 h 02 min"]


def test_the_summary_is_a_table(tmp_path: Path) -> None:
    buffer = io.StringIO()
    print_summary(run(tmp_path).summary(), Console(file=buffer, width=160))
    text = buffer.getvalue()
    assert "raw RR" in text and "slow against none, SR" in text and "9 units in every arm" in text


def test_the_summary_says_what_casts_doubt(tmp_path: Path) -> None:
    buffer = io.StringIO()
    summary = run(tmp_path, limit=1).summary() | {"warnings": ["scaled with [other] statistics"]}
    print_summary(summary | {"arms": {}, "partial_reasons": ["no unit is valid"]}, Console(file=buffer, width=160))
    assert "not a result: no unit is valid" in buffer.getvalue() and "[other]" in buffer.getvalue()
