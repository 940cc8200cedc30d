"""What ``docs/serving.md`` shows can be read by those it is for: YAML, and options that exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from budgetctl.cli.app import app

TEXT = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.skipif(find_spec("yaml") is None, reason="PyYAML is not installed")
def test_the_kubernetes_example_is_a_deployment_and_its_service() -> None:
    import yaml

    (text,) = blocks("yaml")
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    port = container["ports"][0]["containerPort"]
    assert service["spec"]["ports"][0]["targetPort"] == port
    assert container["readinessProbe"]["httpGet"]["port"] == port
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    assert "--logits-processors=budgetctl.integrations.vllm:BudgetLogitsProcessor" in container["args"]


def test_the_options_of_commands_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = 0
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"budgetctl (\w+) (.*)", line)
            if found is None:
                continue
            shown += 1
            known = {name for option in commands[found[1]].params for name in option.opts}
            assert set(re.findall(r"(?<!\S)--[\w-]+", found[2])) <= known, line
    assert shown >= 2
